"""A convolution by a kernel of three rows as a CPU kernel, with about half the products.

A row of the result is the sum of three products, each of a row of the map and a row of taps, so four rows need twelve.
Six suffice (Winograd 1980; Lavin and Gray 2015): a convolution is a product of polynomials, and products of values at
six points, which are sums of rows, determine it. That is done for rows alone: with the columns too it would be a
quarter of the products, but the sums, which memory bounds, would take what is won (256 maps of 16x16 with 128 channels
in bfloat16: 17 ms as they are, 12 this way, 21 with columns).

The sums are larger than what comes of them, the more so the more rows are taken at a time. In bfloat16, with up to
four, the result is off by .006 of its spread rather than by .0024; with five it would be .010. In float32, with up to
six, it is off by 1e-6; with eight, which would need ten products rather than 24, by 3e-6.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float64
from numpy.polynomial.polynomial import polyfromroots

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.dense_conv import Kernel, dense_conv
from jaxcnn.ops.layout import Hwnc
from jaxcnn.ops.window import Window

MIN_CHANNELS = {"float32": 16, "bfloat16": 64}
"""Channels, before and after, from which on sums are cheaper than the products that they save."""
MIN_OPERATIONS = 1e9
"""Of an ordinary convolution, from which on what is saved is more than what it takes to start the products, and to
compile them (a step of the digits, of 64 pictures, on AVX2, compiles in 7 rather than 12 s)."""
MAX_PRODUCTS = 0.75
"""Share of an ordinary convolution's products up to which fewer of them pay for the sums."""
_FEW_ROWS = {3: (0, 1, -1 / 2, -2), 4: (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
POINTS = {
    "bfloat16": _FEW_ROWS,
    "float32": {
        **_FEW_ROWS,
        5: (0, 3 / 5, -3 / 5, 1, -1, -3),
        6: (0, 1 / 2, -1 / 2, 1, -1, 2, -2),
    },
}
"""Where polynomials are evaluated, besides infinity, for so many rows of the result at a time.

Of the small fractions those with the least error in this type; with 0, 1, -1, 2 and -2 it is .0084 in bfloat16."""

_TAPS = 3

type Matrix = tuple[tuple[float, ...], ...]


class _Sums(NamedTuple):
    """Weighted sums of neighbouring rows, tile by tile.

    Attributes:
      weights: for each sum that of each row it sees.
      step: rows between the beginnings of neighbouring tiles.
      tiles: how many there are.
      above: zeros above the map; below there are as many as the tiles need.
      height: rows of the map.
    """

    weights: Matrix
    step: int
    tiles: int
    above: int
    height: int


def has_fewer_products(x: Hwnc, kernel: Kernel, window: Window) -> bool:
    """Whether `winograd_conv` takes this convolution, and is the faster one for it."""
    height, dtype = x.shape[0], x.dtype.name
    if kernel.shape[0] != _TAPS or (window.strides[0], window.padding[0], window.dilation[0]) != (1, (1, 1), 1):
        return False
    if dtype not in POINTS or min(kernel.shape[2:]) < MIN_CHANNELS[dtype]:
        return False
    if 2 * kernel.size * math.prod(x.shape[:3]) < MIN_OPERATIONS:
        return False
    ordinary = _TAPS * height - 2  # those with the zeros around a map are skipped
    return _products(height, _rows_at_a_time(height, dtype)) <= MAX_PRODUCTS * ordinary


def winograd_conv(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """Does what `dense_conv` does, where `has_fewer_products`; the kernel's gradient is summed in float32."""
    height = x.shape[0]
    step = _rows_at_a_time(height, x.dtype.name)
    of_map, of_taps, of_result = _weights(x.dtype.name, step)
    tiles = -(-height // step)
    parts = _sums(x, _Sums(of_map, step, tiles, 1, height))
    taps = [_weighted_sum(weights, [kernel[i : i + 1] for i in range(_TAPS)]) for weights in of_taps]
    row = window._replace(padding=((0, 0), window.padding[1]))
    products = [dense_conv(*each, row) for each in zip(parts, taps, strict=True)]
    return _transposed_sums(products, _Sums(of_result, step, tiles, 0, height))


def _rows_at_a_time(height: int, dtype: str) -> int:
    return min(POINTS[dtype], key=functools.partial(_products, height))


def _products(height: int, step: int) -> int:
    return -(-height // step) * (step + _TAPS - 1)


@functools.cache
def _weights(dtype: str, step: int) -> tuple[Matrix, Matrix, Matrix]:
    """Weights of the rows of a map, of the rows of taps, and of the result's rows, for each product (Toom and Cook)."""
    points = np.array(POINTS[dtype][step])
    others = [np.delete(points, i) for i in range(len(points))]
    scales = np.array([[np.prod(point - each)] for point, each in zip(points, others, strict=True)])
    of_map = np.array([*([*polyfromroots(each), 0] for each in others), polyfromroots(points)])
    of_taps = np.array([*np.vander(points, _TAPS, increasing=True) / scales, np.eye(_TAPS)[-1]])
    of_result = np.array([*np.vander(points, step, increasing=True), np.eye(step)[-1]])
    return _matrix(of_map), _matrix(of_taps), _matrix(of_result)


def _matrix(weights: Float64[np.ndarray, "products rows"]) -> Matrix:
    """Without what should be zero: each such weight would be another row to read."""
    return tuple(tuple(row) for row in np.where(abs(weights) < 1e-12, 0, weights).tolist())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sums(x: Hwnc, sums: _Sums) -> list[Hwnc]:
    """Each of the sums, of all tiles."""
    reach = len(sums.weights[0])
    last = (sums.tiles - 1) * sums.step
    below = last + reach - sums.above - sums.height
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((sums.above, below, 0), *((0, 0, 0),) * 3))
    seen = [padded[i : i + last + 1 : sums.step] for i in range(reach)]
    return [materialize(_weighted_sum(weights, seen)) for weights in sums.weights]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _transposed_sums(parts: list[Hwnc], sums: _Sums) -> Hwnc:
    """Adds to each row of a map what it weighed in each of the sums."""
    parts = [materialize(part) for part in parts]  # oneDNN would add them, in bfloat16 and half as fast
    rows = []
    for k in range(sums.step):
        found = []
        for part, weights in zip(parts, sums.weights, strict=True):
            for i, weight in enumerate(weights):
                tile, apart = divmod(k + sums.above - i, sums.step)
                if apart == 0 and weight:
                    found.append((weight, _shifted(part, tile)))
        rows.append(_weighted_sum(*zip(*found, strict=True)))
    joined = jnp.stack(rows, 1)
    return joined.reshape(-1, *joined.shape[2:])[: sums.height]


_sums.defvjp(lambda x, sums: (_sums(x, sums), None), lambda sums, _, dy: (_transposed_sums(dy, sums),))
_transposed_sums.defvjp(
    lambda parts, sums: (_transposed_sums(parts, sums), None), lambda sums, _, dy: (_sums(dy, sums),)
)


def _shifted(x: Hwnc, by: int) -> Hwnc:
    """Brings tile `t + by` to the place of tile `t`."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((-by, by, 0), *((0, 0, 0),) * 3)) if by else x


def _weighted_sum(weights: Sequence[float], maps: Sequence[Array]) -> Float[Array, "..."]:
    """In float32, rounded once."""
    terms = [weight * each.astype(jnp.float32) for weight, each in zip(weights, maps, strict=True) if weight]
    return functools.reduce(jnp.add, terms).astype(maps[0].dtype)
