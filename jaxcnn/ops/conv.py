"""The convolution of the networks: `lax`'s own, or one whose value and gradients are computed by CPU kernels."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxcnn.ops.dense_conv import dense_conv
from jaxcnn.ops.depthwise_conv import depthwise_conv
from jaxcnn.ops.layout import in_hwnc
from jaxcnn.ops.window import Pairs, Window
from jaxcnn.ops.winograd_conv import has_fewer_products, winograd_conv

__all__ = ["conv"]


def conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns _channels_of_group _features"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str | Pairs = "SAME",
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    cpu: bool = False,
) -> Float[Array, "batch _height _width _channels"]:
    """Convolves a map with a kernel, which is not flipped.

    Args:
      x: the map; its type is the result's.
      kernel: rounded to the type of x. By CPU kernels its gradient is summed and given in the kernel's own type.
      strides: between positions of the kernel, in rows and columns.
      padding: `SAME`, `VALID`, or how many zeros before and after the rows and the columns.
      dilation: distance between the pixels that neighbours of the kernel see.
      groups: parts of the channels that are convolved apart from each other.
      cpu: compute by CPU kernels; the result differs by rounding.
    """
    if isinstance(padding, str):
        reach = [(size - 1) * apart + 1 for size, apart in zip(kernel.shape[:2], dilation, strict=True)]
        rows, columns = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
        padding = ((int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1])))
    if not cpu:
        plain: Array = lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return plain
    window = Window(strides, padding, dilation)
    return in_hwnc(partial(_cpu_conv, kernel=kernel, window=window, groups=groups), x, cpu=True)


def _cpu_conv(
    x: Float[Array, "height width batch channels"],
    *,
    kernel: Float[Array, "rows columns _channels_of_group _features"],
    window: Window,
    groups: int,
) -> Float[Array, "_height _width batch _channels"]:
    """Groups one by one, unless each is a single channel: oneDNN takes no groups, and XLA seconds for one step."""
    convolve = winograd_conv if has_fewer_products(x, kernel, window) else dense_conv
    if groups == 1:
        return convolve(x, kernel, window)
    if groups == x.shape[-1]:
        return depthwise_conv(jnp.repeat(x, kernel.shape[-1] // groups, axis=-1), kernel[:, :, 0], window)
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([convolve(*each, window) for each in parts], axis=-1)
