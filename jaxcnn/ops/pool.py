"""Pooling that halves a map, with gradients as cheap as their values, as CPU kernels."""

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxcnn.ops.layout import Hwnc
from jaxcnn.ops.window import Sides


def max_pool(x: Hwnc) -> Hwnc:
    """The maximum of each 2x2 patch; an odd last row or column is dropped, a side of 1 stays.

    The gradient goes to the first of equal pixels, as with `lax.reduce_window`.
    """
    return _max_pool(x, x.shape[:2])


def avg_pool(x: Hwnc) -> Hwnc:
    """The mean of each 2x2 patch, summed in float32; an odd last row or column is dropped, a side of 1 stays."""
    return _avg_pool(x, x.shape[:2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Hwnc, sides: Sides) -> Hwnc:
    return _max_pool_forward(x, sides)[0]


def _max_pool_forward(x: Hwnc, sides: Sides) -> tuple[Hwnc, UInt8[Array, "_height _width batch channels"]]:
    pixels = _pixels(x, sides)
    y, place = pixels[0], jnp.zeros(pixels[0].shape, jnp.uint8)
    for number, pixel in enumerate(pixels[1:], start=1):
        place = jnp.where(pixel > y, jnp.uint8(number), place)
        y = jnp.maximum(y, pixel)
    return y, place


def _max_pool_backward(sides: Sides, place: UInt8[Array, "..."], dy: Hwnc) -> tuple[Hwnc]:
    rows, columns = _patch(sides)
    number = jnp.arange(rows * columns, dtype=jnp.uint8).reshape(1, rows, 1, columns, 1, 1)
    chosen = place[:, None, :, None] == number
    return (_unite(jnp.where(chosen, dy[:, None, :, None], 0), sides),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool(x: Hwnc, sides: Sides) -> Hwnc:
    pixels = _pixels(x, sides)
    total = functools.reduce(operator.add, [pixel.astype(jnp.float32) for pixel in pixels])
    return (total / len(pixels)).astype(x.dtype)


def _avg_pool_forward(x: Hwnc, sides: Sides) -> tuple[Hwnc, None]:
    return _avg_pool(x, sides), None


def _avg_pool_backward(sides: Sides, _: None, dy: Hwnc) -> tuple[Hwnc]:
    rows, columns = _patch(sides)
    height, width, batch, channels = dy.shape
    share = (dy / (rows * columns))[:, None, :, None]
    return (_unite(jnp.broadcast_to(share, (height, rows, width, columns, batch, channels)), sides),)


_avg_pool.defvjp(_avg_pool_forward, _avg_pool_backward)


def _patch(sides: Sides) -> tuple[int, int]:
    """Rows and columns of a patch: five halvings take an 8x8 picture past 1x1, where two would leave nothing."""
    return min(2, sides[0]), min(2, sides[1])


def _pixels(x: Hwnc, sides: Sides) -> list[Hwnc]:
    """The maps of the first, second... pixel of every patch, row by row."""
    rows, columns = _patch(sides)
    whole = x[: sides[0] // rows * rows, : sides[1] // columns * columns]
    return [whole[row::rows, column::columns] for row in range(rows) for column in range(columns)]


def _unite(patches: Float[Array, "height rows width columns batch channels"], sides: Sides) -> Hwnc:
    """Puts patches side by side, and zeros where an odd row or column had been dropped."""
    height, rows, width, columns, batch, channels = patches.shape
    whole = patches.reshape(height * rows, width * columns, batch, channels)
    missing = [(0, sides[0] - height * rows), (0, sides[1] - width * columns), (0, 0), (0, 0)]
    return jnp.pad(whole, missing)
