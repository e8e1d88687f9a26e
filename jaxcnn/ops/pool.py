"""Pooling that halves a map: XLA's own, or CPU kernels whose gradients are as cheap as their values.

XLA computes the gradient of a maximum pool by searching each patch again. The kernels write a pool as a few elementwise
operations on the maps of the first, second, third and fourth pixels of all patches. `overlapping_max_pool` has no
kernel.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from jaxcnn.ops.dispatch import using_cpu_kernels
from jaxcnn.ops.layout import Hwnc, in_hwnc, pointwise, spatial_axes
from jaxcnn.ops.window import Sides

type Map = Float[Array, "batch height width channels"]
type Halved = Float[Array, "batch _height _width channels"]


def max_pool(x: Map) -> Halved:
    """The maximum of each 2x2 patch. An odd last row or column is dropped; a side of 1 stays.

    The gradient goes to the first of equal pixels.
    """
    if using_cpu_kernels():
        return in_hwnc(lambda x: _max_pool_on_cpu(x, x.shape[:2]), x)
    window = (1, *_patch(x.shape[1:3]), 1)
    largest: Array = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
    return largest


def overlapping_max_pool(x: Map) -> Halved:
    """The maximum of the 3x3 pixels around every second pixel, as after the stem of a ResNet."""
    return pointwise(_overlapping_max_pool, x)


def _overlapping_max_pool(x: Float[Array, "..."]) -> Float[Array, "..."]:
    rows, columns = spatial_axes()
    sizes, strides, padding = [1] * 4, [1] * 4, [(0, 0)] * 4
    for axis in (rows, columns):
        sizes[axis], strides[axis], padding[axis] = 3, 2, (1, 1)
    largest: Array = lax.reduce_window(x, -jnp.inf, lax.max, tuple(sizes), tuple(strides), tuple(padding))
    return largest


def avg_pool(x: Map) -> Halved:
    """The mean of each 2x2 patch. An odd last row or column is dropped, as in Keras; a side of 1 stays.

    CPU kernels sum it in float32.
    """
    if using_cpu_kernels():
        return in_hwnc(lambda x: _avg_pool_on_cpu(x, x.shape[:2]), x)
    window = (1, *_patch(x.shape[1:3]), 1)
    total: Array = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID")
    return total / (window[1] * window[2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_on_cpu(x: Hwnc, sides: Sides) -> Hwnc:
    return _max_pool_forward(x, sides)[0]


def _max_pool_forward(x: Hwnc, sides: Sides) -> tuple[Hwnc, UInt8[Array, "_height _width batch channels"]]:
    """The pooled map, and for each patch which of its pixels, counted from 0, is the largest."""
    pixels = _pixels(x, sides)
    # A later pixel must be larger, so the first of equal ones counts.
    y, largest = pixels[0], jnp.zeros(pixels[0].shape, jnp.uint8)
    for number, pixel in enumerate(pixels[1:], start=1):
        largest = jnp.where(pixel > y, jnp.uint8(number), largest)
        y = jnp.maximum(y, pixel)
    return y, largest


def _max_pool_backward(sides: Sides, largest: UInt8[Array, "..."], dy: Hwnc) -> tuple[Hwnc]:
    # Each pixel of a patch gets the gradient if its number is that of the largest.
    rows, columns = _patch(sides)
    number = jnp.arange(rows * columns, dtype=jnp.uint8).reshape(1, rows, 1, columns, 1, 1)
    chosen = largest[:, None, :, None] == number
    return (_join(jnp.where(chosen, dy[:, None, :, None], 0), sides),)


_max_pool_on_cpu.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool_on_cpu(x: Hwnc, sides: Sides) -> Hwnc:
    pixels = _pixels(x, sides)
    total = functools.reduce(operator.add, [pixel.astype(jnp.float32) for pixel in pixels])
    return (total / len(pixels)).astype(x.dtype)


def _avg_pool_forward(x: Hwnc, sides: Sides) -> tuple[Hwnc, None]:
    return _avg_pool_on_cpu(x, sides), None


def _avg_pool_backward(sides: Sides, _: None, dy: Hwnc) -> tuple[Hwnc]:
    rows, columns = _patch(sides)
    height, width, batch, channels = dy.shape
    share = (dy / (rows * columns))[:, None, :, None]
    return (_join(jnp.broadcast_to(share, (height, rows, width, columns, batch, channels)), sides),)


_avg_pool_on_cpu.defvjp(_avg_pool_forward, _avg_pool_backward)


def _patch(sides: Sides) -> tuple[int, int]:
    """Rows and columns of a patch. Five halvings take an 8x8 picture to 1x1, where a 2x2 patch would leave nothing."""
    return min(2, sides[0]), min(2, sides[1])


def _pixels(x: Hwnc, sides: Sides) -> list[Hwnc]:
    """The maps of the first, second... pixels of all patches, row by row."""
    rows, columns = _patch(sides)
    whole = x[: sides[0] // rows * rows, : sides[1] // columns * columns]
    return [whole[row::rows, column::columns] for row in range(rows) for column in range(columns)]


def _join(patches: Float[Array, "height rows width columns batch channels"], sides: Sides) -> Hwnc:
    """Puts patches side by side, with zeros for an odd row or column that pooling dropped."""
    height, rows, width, columns, batch, channels = patches.shape
    whole = patches.reshape(height * rows, width * columns, batch, channels)
    missing = [(0, sides[0] - height * rows), (0, sides[1] - width * columns), (0, 0), (0, 0)]
    return jnp.pad(whole, missing)
