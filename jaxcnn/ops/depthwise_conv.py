"""The CPU kernel of a depthwise convolution: by oneDNN, or a weighted sum of shifted maps, which is bound by memory.

XLA's own takes 20 to 40 times as long (128 maps of 32x32 with 64 channels, 3x3: 183 and 160 ms for its gradients).
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.layout import Hwnc
from jaxcnn.ops.phases import Taps, join_phases, shifted
from jaxcnn.ops.window import Sides, Window

PIECES = 32
"""Parts of the batch that the gradient of the kernel adds to each other before it sums over positions."""
MANY_TAPS = 9
"""Taps up to which the shifted maps fit into the sets of the first-level cache, see `_pad`."""

type DepthwiseKernel = Float[Array, "rows columns channels"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Hwnc, kernel: DepthwiseKernel, window: Window) -> Hwnc:
    """Convolves each channel with a kernel for that channel; sums in float32, rounds to the type of x."""
    return _convolve(x, kernel, window)


def _forward(x: Hwnc, kernel: DepthwiseKernel, window: Window) -> tuple[Hwnc, tuple[Hwnc, DepthwiseKernel]]:
    return depthwise_conv(x, kernel, window), (x, kernel)


def _backward(window: Window, saved: tuple[Hwnc, DepthwiseKernel], dy: Hwnc) -> tuple[Hwnc, DepthwiseKernel]:
    x, kernel = saved
    # Both gradients read dy, once for each tap.
    dy = materialize(dy)
    dx = _input_gradient(dy, kernel, window, sides=x.shape[:2])
    return dx, _kernel_gradient(x, dy, window, taps=kernel.shape[:2]).astype(kernel.dtype)


depthwise_conv.defvjp(_forward, _backward)


def _convolve(x: Hwnc, kernel: DepthwiseKernel, window: Window) -> Hwnc:
    """Convolves by oneDNN where that is known to be as fast or faster: in float32, on maps as large as the kernel.

    XLA hands it over only as a convolution in three dimensions; the images are the third (32 maps of 56x56 with 144
    channels, 5x5 with a stride of 2: 15 instead of 55 ms; a step of EfficientNet-Lite0: 5 % faster).
    """
    fits = all(side >= count for side, count in zip(x.shape[:2], kernel.shape[:2], strict=True))
    if x.dtype != jnp.float32 or window.dilation != (1, 1) or not fits or min(map(min, window.padding)) < 0:
        return _weighted_sum(x, kernel, window)
    result: Hwnc = lax.conv_general_dilated(
        x[None],
        kernel[:, :, None, None],
        (*window.strides, 1),
        (*window.padding, (0, 0)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )[0]
    return result


def _weighted_sum(x: Hwnc, kernel: DepthwiseKernel, window: Window) -> Hwnc:
    weights = _weights(kernel, x.dtype)
    shifted = _shifted_maps(x, kernel.shape[:2], window)
    products = [map_.astype(jnp.float32) * weight for map_, weight in zip(shifted, weights, strict=True)]
    # Without the barrier each reader, such as a batch normalisation's four, would compute the sum again.
    return materialize(functools.reduce(operator.add, products).astype(x.dtype))


def _weights(kernel: DepthwiseKernel, dtype: DTypeLike) -> Float[Array, "taps 1 1 1 channels"]:
    """The taps, row by row, rounded to the type of the map before the sum in float32, as in a dense convolution."""
    return kernel.astype(dtype).astype(jnp.float32).reshape(-1, 1, 1, 1, kernel.shape[-1])


def _input_gradient(dy: Hwnc, kernel: DepthwiseKernel, window: Window, *, sides: Sides) -> Hwnc:
    """The gradient of the input, one weighted sum of shifted maps for each phase of the strides.

    Sums over a gradient with zeros between its pixels take twice as long (32 maps of 112x112 with 96 channels, 3x3).
    """
    taps = kernel.shape[:2]
    flipped = kernel[::-1, ::-1]
    if window.strides == (1, 1):
        return _convolve(dy, materialize(flipped), window.transposed(sides, dy.shape[:2], taps))
    compute = functools.partial(_phase, dy, flipped)
    return join_phases(compute, window, sides=sides, result_sides=dy.shape[:2], taps=taps)


def _phase(dy: Hwnc, kernel: DepthwiseKernel, rows: Taps, columns: Taps, counts: Sides) -> Hwnc:
    """The gradient of the pixels of one phase: a weighted sum of shifted maps, or zeros where no tap sees them."""
    total = jnp.zeros((*counts, *dy.shape[2:]), jnp.float32)
    weights = _weights(kernel, dy.dtype).reshape(*kernel.shape[:2], 1, 1, 1, -1)
    for (row, down), (column, right) in itertools.product(rows, columns):
        total = total + shifted(dy, (down, right), counts).astype(jnp.float32) * weights[row, column]
    return total.astype(dy.dtype)


def _kernel_gradient(x: Hwnc, dy: Hwnc, window: Window, *, taps: Sides) -> Float32[Array, "_rows _columns channels"]:
    """For each tap, the sum over images and positions of the pixel that it saw times the gradient of the result.

    The images are summed elementwise, as XLA has no fast loop for such a sum. All taps of a position come one after the
    other, while its pixels are in the cache (32 maps of 28x28 with 240 channels, 5x5: half the time of one pass over
    both maps for every two taps). Reading pixels by their number makes the tap an axis of the result.
    """
    rows, columns, batch, channels = dy.shape
    padded = _pad(x, window, many=True)
    pixels = padded.reshape(-1, *padded.shape[2:])
    seen = _seen_pixels(window, taps, results=(rows, columns), width=padded.shape[1])
    gradients = dy.reshape(rows * columns, 1, batch, channels)
    # Products of some images at a time, for each position and tap.
    images = -(-batch // PIECES)
    products = []
    for first in range(0, batch, images):
        part = slice(first, min(first + images, batch))
        pixel = pixels[:, part].at[seen].get(mode="promise_in_bounds").astype(jnp.float32)
        product = pixel * gradients[:, :, part].astype(jnp.float32)
        products.append(jnp.pad(product, ((0, 0), (0, 0), (0, images - product.shape[2]), (0, 0))))
    # The barrier keeps the reshape out of the loop over channels, which would no longer be vectorised.
    total = materialize(functools.reduce(operator.add, products))
    sums = total.reshape(rows * columns, -1).sum(0)
    return sums.reshape(*taps, images, channels).sum(2)


def _seen_pixels(window: Window, taps: Sides, *, results: Sides, width: int) -> Int[Array, "positions taps"]:
    """The number of the pixel of a padded map, row by row, that each tap sees in each position of the kernel.

    Args:
      window: how the kernel moves.
      taps: rows and columns of the kernel.
      results: rows and columns of the result.
      width: columns of the padded map.
    """
    row, column = (
        stride * jnp.arange(positions)[:, None] + spacing * jnp.arange(count)[None]
        for stride, positions, spacing, count in zip(window.strides, results, window.dilation, taps, strict=True)
    )
    return (row[:, None, :, None] * width + column[None, :, None, :]).reshape(math.prod(results), math.prod(taps))


def _shifted_maps(x: Hwnc, taps: Sides, window: Window) -> list[Hwnc]:
    """For each tap of the kernel, row by row, the pixels that it sees in all positions of the kernel."""
    padded = _pad(x, window, many=math.prod(taps) > MANY_TAPS)
    ends = [
        side - (count - 1) * spacing
        for side, count, spacing in zip(padded.shape[:2], taps, window.dilation, strict=True)
    ]
    return [
        padded[row : row + ends[0] : window.strides[0], column : column + ends[1] : window.strides[1], : x.shape[2]]
        for row in range(0, taps[0] * window.dilation[0], window.dilation[0])
        for column in range(0, taps[1] * window.dilation[1], window.dilation[1])
    ]


def _pad(x: Hwnc, window: Window, *, many: bool) -> Hwnc:
    """Pads a map; with many taps by one more image too, so that its columns are no power of two apart.

    All taps read at once, and columns of 32 images would all fall into the same set of the first-level cache (32 maps
    of 7x7 with 1152 channels, 5x5: twice as long).
    """
    edges = (*((*pair, 0) for pair in window.padding), (0, int(many), 0), (0, 0, 0))
    padded: Hwnc = lax.pad(x, jnp.zeros((), x.dtype), edges)
    return materialize(padded) if many else padded
