"""Convolution: XLA's own, or one whose value and gradients the CPU kernels compute."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxcnn.ops.dense_conv import dense_conv
from jaxcnn.ops.depthwise_conv import depthwise_conv
from jaxcnn.ops.device_sum import apply_kernel
from jaxcnn.ops.dispatch import using_cpu_kernels
from jaxcnn.ops.layout import Hwnc, in_hwnc
from jaxcnn.ops.window import Pairs, Window
from jaxcnn.ops.winograd_conv import has_fewer_products, winograd_conv

__all__ = ["conv"]

type GroupedKernel = Float[Array, "rows columns _channels_of_group _features"]


def conv(
    x: Float[Array, "batch height width channels"],
    kernel: GroupedKernel,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str | Pairs = "SAME",
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Float[Array, "batch _height _width _channels"]:
    """Convolves a map with a kernel, which is not flipped. By CPU kernels the result differs by rounding.

    On several devices, the gradient of the kernel is summed in float32, see `device_sum`.

    Args:
      x: the map; the result has its type.
      kernel: rounded to the type of x. By CPU kernels its gradient is summed in float32 and has the kernel's own type.
      strides: step of the kernel, in rows and columns.
      padding: `SAME`, `VALID`, or the number of zeros before and after the rows, and before and after the columns.
      dilation: distance between the pixels that neighbouring taps of the kernel see, in rows and columns.
      groups: number of equal parts of the channels that are convolved independently; as many as channels is depthwise.
    """
    if isinstance(padding, str):
        reach = [(size - 1) * spacing + 1 for size, spacing in zip(kernel.shape[:2], dilation, strict=True)]
        rows, columns = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
        padding = ((int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1])))
    if using_cpu_kernels():
        window = Window(strides, padding, dilation)
        return in_hwnc(partial(_conv_on_cpu, kernel=kernel, window=window, groups=groups), x)
    product = partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return apply_kernel(product, x, kernel)


def _conv_on_cpu(x: Hwnc, *, kernel: GroupedKernel, window: Window, groups: int) -> Hwnc:
    """Picks the fastest kernel for a convolution."""
    convolve = winograd_conv if has_fewer_products(x, kernel, window) else dense_conv
    if groups == 1:
        return convolve(x, kernel, window)
    if groups == x.shape[-1]:
        return depthwise_conv(jnp.repeat(x, kernel.shape[-1] // groups, axis=-1), kernel[:, :, 0], window)
    # One convolution for each group: its gradients are then convolutions that oneDNN computes.
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    results = [convolve(part, part_kernel, window) for part, part_kernel in parts]
    return jnp.concatenate(results, axis=-1)
