"""Resampling along one axis: each row of the result is the weighted sum of a few rows of the input."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from jaxcnn.ops.dispatch import using_cpu_kernels


class Taps(NamedTuple):
    """The rows that each row of a result is made of.

    Attributes:
      rows: their positions in the input. The same row may stand more than once.
      weight: its factor; 0 for a tap that is not used.
    """

    rows: Int[Array, "batch rows taps"]
    weight: Float[Array, "batch rows taps"]


def resample(
    x: UInt8[Array, "batch length width"] | Float[Array, "batch length width"], taps: Taps
) -> Float[Array, "batch rows width"]:
    """Computes the weighted sums of rows of each example.

    The CPU kernel reads the rows that a result is made of. Elsewhere it is a product with a matrix that is mostly
    zeros, as matrix units want it.
    """
    if using_cpu_kernels():
        read = [jax.vmap(_take)(x, taps.rows[:, :, i]) for i in range(taps.rows.shape[2])]
        return functools.reduce(operator.add, [taps.weight[:, :, i, None] * rows for i, rows in enumerate(read)])
    chosen = taps.rows[..., None] == jnp.arange(x.shape[1])[None, None, None, :]
    matrices = jnp.where(chosen, taps.weight[..., None], 0).sum(2)
    return jnp.einsum("brl,blw->brw", matrices, x.astype(jnp.float32), precision=lax.Precision.HIGHEST)


def _take(rows: Array, index: Int[Array, " rows"]) -> Float[Array, "rows width"]:
    return rows.at[index].get(mode="promise_in_bounds").astype(jnp.float32)
