"""The CPU kernel of a convolution over all channels: three convolutions of the one kind that oneDNN computes.

XLA hands oneDNN only what it recognises as the forward pass of a convolution. Both gradients are therefore written as
forward passes over other maps, with the images as the third spatial dimension of a single example (see `layout`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.layout import Hwnc
from jaxcnn.ops.phases import Taps, join_phases
from jaxcnn.ops.window import Sides, Window

LINES_FROM = 16
"""Columns of the result from which on `_convolve_lines` computes the gradient of a kernel."""
PIECES = 16
"""Parts in which the gradient of a 1x1 kernel is summed.

oneDNN is fast only if the result is bfloat16 as well. Adding a few such results in float32 keeps the rounding small."""

type Kernel = Float[Array, "_rows _columns _channels _features"]

_FORWARD = ("NDHWC", "DHWIO", "NDHWC")
_TRANSPOSED = ("NDHWC", "DHWOI", "NDHWC")
"""Input and output channels of the kernel change places."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense_conv(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """Convolves in the type of x; the kernel's gradient is summed in float32."""
    return _convolve(x, kernel.astype(x.dtype), window)


def _forward(x: Hwnc, kernel: Kernel, window: Window) -> tuple[Hwnc, tuple[Hwnc, Kernel]]:
    return dense_conv(x, kernel, window), (x, kernel)


def _backward(window: Window, saved: tuple[Hwnc, Kernel], dy: Hwnc) -> tuple[Hwnc, Kernel]:
    x, kernel = saved
    # Both gradients read dy.
    dy = materialize(dy)
    dx = _input_gradient(dy, kernel.astype(dy.dtype), window, sides=x.shape[:2])
    return dx, _kernel_gradient(x, dy, window, taps=kernel.shape[:2]).astype(kernel.dtype)


dense_conv.defvjp(_forward, _backward)


def _convolve(x: Hwnc, kernel: Kernel, window: Window, *, dimensions: tuple[str, str, str] = _FORWARD) -> Hwnc:
    """A convolution over height and width as one in three dimensions, the third of which has a kernel of size 1."""
    result: Hwnc = lax.conv_general_dilated(
        x[None],
        kernel[:, :, None],
        (*window.strides, 1),
        (*window.padding, (0, 0)),
        rhs_dilation=(*window.dilation, 1),
        dimension_numbers=dimensions,
    )[0]
    return result


def _input_gradient(dy: Hwnc, kernel: Kernel, window: Window, *, sides: Sides) -> Hwnc:
    """Convolves the gradient of the result with the flipped kernel.

    Args:
      dy: gradient of the result.
      kernel: in the type of dy.
      window: of the forward pass.
      sides: height and width of the input.
    """
    taps = kernel.shape[:2]
    # Without the barrier XLA reverses the window instead of the kernel, which oneDNN does not take: ten times slower.
    flipped = materialize(kernel[::-1, ::-1])
    if window.strides == (1, 1):
        return _convolve(dy, flipped, window.transposed(sides, dy.shape[:2], taps), dimensions=_TRANSPOSED)
    return join_phases(partial(_phase, dy, flipped), window, sides=sides, result_sides=dy.shape[:2], taps=taps)


def _phase(dy: Hwnc, kernel: Kernel, rows: Taps, columns: Taps, counts: Sides) -> Hwnc:
    """The gradient of the pixels of one phase: a convolution with its taps, or zeros where no tap sees them."""
    if not rows or not columns:
        return jnp.zeros((*counts, dy.shape[2], kernel.shape[2]), dy.dtype)
    chosen, padding, dilation = [], [], []
    for taps, count, side in zip((rows, columns), counts, dy.shape[:2], strict=True):
        (tap, start), (next_tap, next_start), (last_tap, end) = taps[0], taps[min(1, len(taps) - 1)], taps[-1]
        chosen.append(slice(tap, last_tap + 1, max(next_tap - tap, 1)))
        padding.append((-start, end + count - side))
        dilation.append(max(next_start - start, 1))
    window = Window((1, 1), (padding[0], padding[1]), (dilation[0], dilation[1]))
    return _convolve(dy, materialize(kernel[chosen[0], chosen[1]]), window, dimensions=_TRANSPOSED)


def _kernel_gradient(x: Hwnc, dy: Hwnc, window: Window, *, taps: Sides) -> Kernel:
    """Sums, over images and positions, the pixel that each tap saw times the gradient of the result.

    That is a convolution whose kernel is `dy`, as large as the map. The images are its input channels, over which it
    sums, and the channels of the map are its third spatial dimension. Strides and dilation change places.

    Args:
      x: input of the forward pass.
      dy: gradient of the result.
      window: of the forward pass.
      taps: rows and columns of the kernel.
    """
    if taps == (1, 1) and window.padding == ((0, 0), (0, 0)):
        down, across = window.strides
        return _dense_gradient(x[::down, ::across], dy)[None, None]
    (top, _), (left, _) = window.padding
    # Rows and columns that the kernel sees in all its positions, padding included.
    down, across = (
        (count - 1) * spacing + (side - 1) * stride + 1
        for count, spacing, side, stride in zip(taps, window.dilation, dy.shape[:2], window.strides, strict=True)
    )
    seen = x[max(-top, 0) : max(down - top, 0)]
    if not seen.shape[0]:
        # The kernel saw nothing but padding.
        return jnp.zeros((*taps, x.shape[-1], dy.shape[-1]), jnp.float32)
    above = min(max(top, 0), down - seen.shape[0])
    padding = ((above, down - seen.shape[0] - above), (left, across - left - x.shape[1]))
    swapped = Window(window.dilation, padding, window.strides)
    convolve = _convolve_swapped if dy.shape[1] < LINES_FROM else _convolve_lines
    return convolve(seen, dy, swapped).astype(jnp.float32)


def _convolve_swapped(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """`_convolve` with a kernel as large as the map, after images and channels of the map have changed places."""
    # XLA transposes fast only in an operation by itself; the barrier keeps what computes x out of it.
    return _convolve(materialize(x).transpose(0, 1, 3, 2), kernel, window)


def _convolve_lines(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """What `_convolve_swapped` computes, for maps of many columns.

    A row becomes one line of columns times channels, in which neighbouring columns of the kernel are as far apart as
    there are channels. The innermost loop then runs over the taps of a row and all channels, and the kernel is read
    once for each row of taps (128 maps of 64x64 with 32 channels, 2x2: 11 instead of 14 ms). Padding takes part in the
    computation instead of being skipped, which costs too much on small maps.
    """
    no_edge = (0, 0, 0)
    edges = (*((before, after, 0) for before, after in window.padding), no_edge, no_edge)
    padded = materialize(lax.pad(x, jnp.zeros((), x.dtype), edges))
    rows, columns, images, channels = padded.shape
    result = lax.conv_general_dilated(
        padded.transpose(0, 1, 3, 2).reshape(1, rows, 1, columns * channels, images),
        kernel[:, None],
        (window.strides[0], 1, 1),
        "VALID",
        rhs_dilation=(window.dilation[0], 1, window.dilation[1] * channels),
        dimension_numbers=_FORWARD,
    )
    positions: Hwnc = result.reshape(result.shape[1], -1, channels, kernel.shape[-1])
    return positions[:, :: window.strides[1]]


def _dense_gradient(x: Hwnc, dy: Hwnc) -> Float32[Array, "_channels _features"]:
    """The gradient of a 1x1 kernel: a matrix product over all positions, in `PIECES` parts."""
    positions = x.shape[0] * x.shape[1] * x.shape[2]
    pieces = PIECES if positions % PIECES == 0 else 1
    left, right = (map_.reshape(pieces, positions // pieces, map_.shape[-1]) for map_ in (x, dy))
    products = lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,))))
    return products.astype(jnp.float32).sum(0)
