"""The CPU kernel of a convolution by three rows of taps, with about half the products of the dense one.

One row of the result is the sum of three products, each of a row of the map and a row of taps, so four rows need
twelve. Six suffice (Winograd 1980; Lavin and Gray 2015): the convolution is a product of two polynomials, whose values
at six points determine it. The values are weighted sums of rows, so the algorithm has three stages:

1. For each point, a weighted sum of the rows of the map, and one of the rows of taps.
2. For each point, the product of the two: a dense convolution with one row of taps.
3. For each row of the result, a weighted sum of the products.

Only rows are treated this way. With columns too there would be a quarter of the products, but memory bounds the sums,
and they would cost more than is saved (256 maps of 16x16 with 128 channels in bfloat16: 17 ms by the dense kernel, 12
by this one, 21 with columns).

The sums are larger than the result that they cancel to, the more so the more rows are computed at a time, and so is
their rounding. In bfloat16, with up to four rows, the result is off by .006 of its standard deviation, and by .0024
with the dense kernel; with five it would be .010. In float32, with up to six rows, it is off by 1e-6; with eight, which
would need ten products instead of 24, by 3e-6.
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
"""Input and output channels from which on the sums cost less than the products that they save."""
MIN_OPERATIONS = 1e9
"""Operations of the dense convolution from which on the saving is worth starting and compiling several convolutions.

A step of the digits, of 64 pictures, on AVX2, compiles in 7 s with this bound and in 12 s without."""
MAX_PRODUCTS = 0.75
"""Share of the dense convolution's products up to which the saved ones pay for the sums."""
_FEW_ROWS = {3: (0, 1, -1 / 2, -2), 4: (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
POINTS = {
    "bfloat16": _FEW_ROWS,
    "float32": {
        **_FEW_ROWS,
        5: (0, 3 / 5, -3 / 5, 1, -1, -3),
        6: (0, 1 / 2, -1 / 2, 1, -1, 2, -2),
    },
}
"""By type and by number of rows computed at a time: where the polynomials are evaluated, besides infinity.

These are the small fractions with the least rounding error in the type; in bfloat16, 0, 1, -1, 2 and -2 have .0084."""

_TAPS = 3
"""Rows of taps."""

type Matrix = tuple[tuple[float, ...], ...]
"""Weights by [sum, row]."""


class _Sums(NamedTuple):
    """Weighted sums of neighbouring rows, for each tile of a map. Tiles have as many rows as weights, and may overlap.

    Attributes:
      weights: for each sum the weight of each row of a tile.
      step: rows from the beginning of a tile to that of the next.
      tiles: number of tiles.
      above: rows of zeros above the map; below it there are as many as the last tile needs.
      height: rows of the map.
    """

    weights: Matrix
    step: int
    tiles: int
    above: int
    height: int


def has_fewer_products(x: Hwnc, kernel: Kernel, window: Window) -> bool:
    """Whether `winograd_conv` can compute a convolution, and does so faster than `dense_conv`."""
    height, dtype = x.shape[0], x.dtype.name
    if kernel.shape[0] != _TAPS or (window.strides[0], window.padding[0], window.dilation[0]) != (1, (1, 1), 1):
        return False
    if dtype not in POINTS or min(kernel.shape[2:]) < MIN_CHANNELS[dtype]:
        return False
    if 2 * kernel.size * math.prod(x.shape[:3]) < MIN_OPERATIONS:
        return False
    # The dense kernel skips the rows of zeros above and below the map.
    dense = _TAPS * height - 2
    return _products(height, _rows_at_a_time(height, dtype)) <= MAX_PRODUCTS * dense


def winograd_conv(x: Hwnc, kernel: Kernel, window: Window) -> Hwnc:
    """Computes what `dense_conv` does, if `has_fewer_products`; the kernel's gradient is summed in float32."""
    height = x.shape[0]
    step = _rows_at_a_time(height, x.dtype.name)
    of_map, of_taps, of_result = _weights(x.dtype.name, step)
    tiles = -(-height // step)
    # Stage 1: sums of rows of the map, with a row of zeros above it, and of rows of taps.
    map_sums = _sums(x, _Sums(of_map, step, tiles, 1, height))
    tap_sums = [_weighted_sum(weights, [kernel[i : i + 1] for i in range(_TAPS)]) for weights in of_taps]
    # Stage 2: one product for each point.
    row = window._replace(padding=((0, 0), window.padding[1]))
    products = [dense_conv(map_sum, tap_sum, row) for map_sum, tap_sum in zip(map_sums, tap_sums, strict=True)]
    # Stage 3: sums of products.
    return _transposed_sums(products, _Sums(of_result, step, tiles, 0, height))


def _rows_at_a_time(height: int, dtype: str) -> int:
    """The rows of the result to compute at a time, for the fewest products."""
    return min(POINTS[dtype], key=functools.partial(_products, height))


def _products(height: int, step: int) -> int:
    """Products of a map's row and a row of taps, if `step` rows of the result are computed at a time."""
    return -(-height // step) * (step + _TAPS - 1)


@functools.cache
def _weights(dtype: str, step: int) -> tuple[Matrix, Matrix, Matrix]:
    """For each product, the weights of the map's rows, of the rows of taps, and of the result's rows (Toom and Cook).

    The last product belongs to the point at infinity, the others to `POINTS`.
    """
    points = np.array(POINTS[dtype][step])
    others = [np.delete(points, i) for i in range(len(points))]
    scales = np.array([[np.prod(point - roots)] for point, roots in zip(points, others, strict=True)])
    of_map = np.array([*([*polyfromroots(roots), 0] for roots in others), polyfromroots(points)])
    of_taps = np.array([*np.vander(points, _TAPS, increasing=True) / scales, np.eye(_TAPS)[-1]])
    of_result = np.array([*np.vander(points, step, increasing=True), np.eye(step)[-1]])
    return _matrix(of_map), _matrix(of_taps), _matrix(of_result)


def _matrix(weights: Float64[np.ndarray, "products rows"]) -> Matrix:
    # Weights that are zero but for rounding would each be another row to read.
    return tuple(tuple(row) for row in np.where(abs(weights) < 1e-12, 0, weights).tolist())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sums(x: Hwnc, sums: _Sums) -> list[Hwnc]:
    """Each of the sums, of all tiles: [tiles, width, batch, channels]."""
    reach = len(sums.weights[0])
    last = (sums.tiles - 1) * sums.step
    below = last + reach - sums.above - sums.height
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((sums.above, below, 0), *((0, 0, 0),) * 3))
    seen = [padded[i : i + last + 1 : sums.step] for i in range(reach)]
    return [materialize(_weighted_sum(weights, seen)) for weights in sums.weights]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _transposed_sums(parts: list[Hwnc], sums: _Sums) -> Hwnc:
    """The transpose of `_sums`, which is linear: adds to each row of a map its weight in each sum, times that sum."""
    # Without the barrier oneDNN would add the products itself, in bfloat16 and half as fast.
    parts = [materialize(part) for part in parts]
    rows = []
    # For row k of every tile: the sums of that tile, and, shifted into place, of the tiles that overlap it there.
    for k in range(sums.step):
        summands = []
        for part, weights in zip(parts, sums.weights, strict=True):
            for i, weight in enumerate(weights):
                tile, remainder = divmod(k + sums.above - i, sums.step)
                if remainder == 0 and weight:
                    summands.append((weight, _shifted(part, tile)))
        rows.append(_weighted_sum(*zip(*summands, strict=True)))
    joined = jnp.stack(rows, 1)
    return joined.reshape(-1, *joined.shape[2:])[: sums.height]


# Each of the two is the other's gradient.
_sums.defvjp(lambda x, sums: (_sums(x, sums), None), lambda sums, _, dy: (_transposed_sums(dy, sums),))
_transposed_sums.defvjp(
    lambda parts, sums: (_transposed_sums(parts, sums), None), lambda sums, _, dy: (_sums(dy, sums),)
)


def _shifted(x: Hwnc, by: int) -> Hwnc:
    """Moves tile `t + by` to the place of tile `t`; zeros fill the gap."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((-by, by, 0), *((0, 0, 0),) * 3)) if by else x


def _weighted_sum(weights: Sequence[float], maps: Sequence[Array]) -> Float[Array, "..."]:
    """Sums in float32 and rounds once, to the type of the maps."""
    terms = [weight * map_.astype(jnp.float32) for weight, map_ in zip(weights, maps, strict=True) if weight]
    return functools.reduce(jnp.add, terms).astype(maps[0].dtype)
