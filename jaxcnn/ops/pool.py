"""Pooling that halves a map: XLA's own, or CPU kernels whose gradients are as cheap as their values.

XLA computes the gradient of a maximum pool by searching each patch again, and a pool of overlapping patches on one
core. The kernels write a pool as a few elementwise operations on the maps of the first, second, third... pixels of all
patches.
"""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from jaxcnn.ops.dispatch import using_cpu_kernels
from jaxcnn.ops.layout import Hwnc, in_hwnc
from jaxcnn.ops.phases import Taps, join_phases, shifted
from jaxcnn.ops.window import Sides, Window

OVERLAPPING = Window((2, 2), ((1, 1), (1, 1)), (1, 1))
"""How the 3x3 patches of `overlapping_max_pool` move."""
PIXELS = list(itertools.product(range(3), range(3)))
"""Rows and columns of the pixels of a 3x3 patch, in their order."""

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
    """The maximum of the 3x3 pixels around every second pixel, as after the stem of a ResNet.

    The gradient goes to the first of equal pixels.
    """
    if using_cpu_kernels():
        return in_hwnc(lambda x: _overlapping_max_pool_on_cpu(x, x.shape[:2]), x)
    largest: Array = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
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
    return _largest(_pixels(x, sides))


def _largest(pixels: list[Hwnc]) -> tuple[Hwnc, UInt8[Array, "_height _width batch channels"]]:
    """The largest of some maps at each place, and its number, counted from 0."""
    # A later pixel must be larger, so the first of equal ones counts. XLA compares slowly in bfloat16 (32 maps of
    # 112x112 with 64 channels, 3x3 patches: 64 ms of CPU time instead of 14).
    y, *others = [pixel.astype(jnp.float32) for pixel in pixels]
    largest = jnp.zeros(y.shape, jnp.uint8)
    for number, pixel in enumerate(others, start=1):
        largest = jnp.where(pixel > y, jnp.uint8(number), largest)
        y = jnp.maximum(y, pixel)
    return y.astype(pixels[0].dtype), largest


def _max_pool_backward(sides: Sides, largest: UInt8[Array, "..."], dy: Hwnc) -> tuple[Hwnc]:
    # Each pixel of a patch gets the gradient if its number is that of the largest.
    rows, columns = _patch(sides)
    number = jnp.arange(rows * columns, dtype=jnp.uint8).reshape(1, rows, 1, columns, 1, 1)
    chosen = largest[:, None, :, None] == number
    return (_join(jnp.where(chosen, dy[:, None, :, None], 0), sides),)


_max_pool_on_cpu.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _overlapping_max_pool_on_cpu(x: Hwnc, sides: Sides) -> Hwnc:
    return _overlapping_forward(x, sides)[0]


def _overlapping_forward(x: Hwnc, sides: Sides) -> tuple[Hwnc, UInt8[Array, "_height _width batch channels"]]:
    edges = (*OVERLAPPING.padding, (0, 0), (0, 0))
    padded = jnp.pad(x, edges, constant_values=-jnp.inf)
    rows, columns = (-(-side // 2) * 2 for side in sides)
    return _largest([padded[row : row + rows : 2, column : column + columns : 2] for row, column in PIXELS])


def _overlapping_backward(sides: Sides, largest: UInt8[Array, "..."], dy: Hwnc) -> tuple[Hwnc]:
    def compute(rows: Taps, columns: Taps, counts: Sides) -> Hwnc:
        # A pixel of the input lies in up to four patches. It gets the gradient of a patch of which it is the largest.
        total = jnp.zeros((*counts, *dy.shape[2:]), jnp.float32)
        for (row, down), (column, right) in itertools.product(rows, columns):
            # Taps count from the end, as in a flipped kernel.
            chosen = largest == PIXELS.index((2 - row, 2 - column))
            total += shifted(jnp.where(chosen, dy, 0), (down, right), counts).astype(jnp.float32)
        return total.astype(dy.dtype)

    return (join_phases(compute, OVERLAPPING, sides=sides, result_sides=dy.shape[:2], taps=(3, 3)),)


_overlapping_max_pool_on_cpu.defvjp(_overlapping_forward, _overlapping_backward)


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
