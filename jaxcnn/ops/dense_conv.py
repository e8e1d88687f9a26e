"""A convolution over all channels as a CPU kernel: for the value and both gradients an ordinary one that oneDNN takes.

XLA hands oneDNN what it knows as the forward pass only. Both gradients are therefore written as forward passes of other
maps, with the images as the third spatial dimension of a single example, see `layout`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.layout import Hwnc
from jaxcnn.ops.window import Sides, Window

LINES_FROM = 16
"""Columns of a map from which on the gradient of a kernel is taken from lines, see `_convolve_lines`."""
PIECES = 16
"""Parts in which the gradient of a 1x1 kernel is summed: oneDNN multiplies fast with a bfloat16 result only, and the
sum of a few of them in float32 keeps its rounding small."""

type Kernel = Float[Array, "_rows _columns _channels _features"]

_FORWARD = ("NDHWC", "DHWIO", "NDHWC")
_TURNED = ("NDHWC", "DHWOI", "NDHWC")  # the kernel's channels change places


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense_conv(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """Convolves in the type of x; the kernel's gradient is summed in float32."""
    return _convolve(x, kernel.astype(x.dtype), window)


def _forward(x: Hwnc, kernel: Kernel, window: Window) -> tuple[Hwnc, tuple[Hwnc, Kernel]]:
    return dense_conv(x, kernel, window), (x, kernel)


def _backward(window: Window, saved: tuple[Hwnc, Kernel], dy: Hwnc) -> tuple[Hwnc, Kernel]:
    x, kernel = saved
    dy = materialize(dy)
    dx = _input_gradient(dy, kernel.astype(dy.dtype), window, sides=x.shape[:2])
    return dx, _kernel_gradient(x, dy, window, taps=kernel.shape[:2]).astype(kernel.dtype)


dense_conv.defvjp(_forward, _backward)


def _convolve(x: Hwnc, kernel: Kernel, window: Window, *, dimensions: tuple[str, str, str] = _FORWARD) -> Hwnc:
    found: Hwnc = lax.conv_general_dilated(
        x[None],
        kernel[:, :, None],
        (*window.strides, 1),
        (*window.padding, (0, 0)),
        rhs_dilation=(*window.dilation, 1),
        dimension_numbers=dimensions,
    )[0]
    return found


def _input_gradient(dy: Hwnc, kernel: Kernel, window: Window, *, sides: Sides) -> Hwnc:
    """Convolves the gradient with the flipped kernel.

    It is flipped beforehand: XLA would reverse the window instead, which keeps oneDNN out and is ten times slower.
    """
    flipped = materialize(kernel[::-1, ::-1])
    back = window.transposed(sides, dy.shape[:2], kernel.shape[:2])
    return _convolve(window.spread(dy), flipped, back, dimensions=_TURNED)


def _kernel_gradient(x: Hwnc, dy: Hwnc, window: Window, *, taps: Sides) -> Kernel:
    """The sum, over images and positions, of what each tap saw times the gradient.

    That is a convolution with the gradient for a kernel as large as the map: the images are the channels that are
    summed, and the map's channels are its third spatial dimension.
    """
    if taps == (1, 1) and window.strides == (1, 1) and window.padding == ((0, 0), (0, 0)):
        return _dense_gradient(x, dy)[None, None]
    (top, _), (left, _) = window.padding
    down, across = (
        (count - 1) * apart + (side - 1) * stride + 1
        for count, apart, side, stride in zip(taps, window.dilation, dy.shape[:2], window.strides, strict=True)
    )
    seen = x[max(-top, 0) : max(down - top, 0)]
    if not seen.shape[0]:  # nothing but padding
        return jnp.zeros((*taps, x.shape[-1], dy.shape[-1]), jnp.float32)
    above = min(max(top, 0), down - seen.shape[0])
    padding = ((above, down - seen.shape[0] - above), (left, across - left - x.shape[1]))
    turned = Window(window.dilation, padding, window.strides)
    found = (_convolve_turned if dy.shape[1] < LINES_FROM else _convolve_lines)(seen, dy, turned)
    return found.astype(jnp.float32)


def _convolve_turned(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """`_convolve` with a kernel as large as the map, in which images and channels change places.

    XLA does that well in an operation of its own only, so the barrier keeps what comes before out of it.
    """
    return _convolve(materialize(x).transpose(0, 1, 3, 2), kernel, window)


def _convolve_lines(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """The same for a map of many columns.

    A row is laid out as one line of columns and channels, in which the kernel's columns are as far apart as there are
    channels. The innermost loop then runs over the taps of a row and all channels, and the kernel is read once for each
    row of taps (128 maps of 64x64 with 32 channels, 2x2: 11 instead of 14 ms). Padding is computed with rather than
    skipped, which costs too much on small maps.
    """
    padded = materialize(
        lax.pad(x, jnp.zeros((), x.dtype), (*((*edge, 0) for edge in window.padding), (0, 0, 0), (0, 0, 0)))
    )
    rows, columns, images, channels = padded.shape
    found = lax.conv_general_dilated(
        padded.transpose(0, 1, 3, 2).reshape(1, rows, 1, columns * channels, images),
        kernel[:, None],
        (window.strides[0], 1, 1),
        "VALID",
        rhs_dilation=(window.dilation[0], 1, window.dilation[1] * channels),
        dimension_numbers=_FORWARD,
    )
    places: Hwnc = found.reshape(found.shape[1], -1, channels, kernel.shape[-1])
    return places[:, :: window.strides[1]]


def _dense_gradient(x: Hwnc, dy: Hwnc) -> Float32[Array, "_channels _features"]:
    """The gradient of a 1x1 kernel: a product over all positions."""
    positions = x.shape[0] * x.shape[1] * x.shape[2]
    pieces = PIECES if positions % PIECES == 0 else 1
    left, right = (each.reshape(pieces, positions // pieces, each.shape[-1]) for each in (x, dy))
    products = lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,))))
    return products.astype(jnp.float32).sum(0)
