"""Resampling of pictures: weighted sums of a few rows for each row of the result, then the same for the columns."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.dispatch import using_cpu_kernels

type Lines = UInt8[Array, "batch length width"] | Float[Array, "batch length width"]


class Taps(NamedTuple):
    """The lines, rows or columns, that each line of a result is made of.

    Attributes:
      lines: their positions in the input. The same line may stand more than once.
      weight: its factor; 0 for a tap that is not used.
    """

    lines: Int[Array, "taps batch result"]
    weight: Float[Array, "taps batch result"]


def resample(
    images: UInt8[Array, "batch height width channels"], rows: Taps, columns: Taps
) -> Float[Array, "batch channels rows columns"]:
    """Computes the weighted sums of the rows of each picture, and then of their columns.

    The CPU kernel reads the lines that a result is made of. Elsewhere they are products with matrices that are mostly
    zeros, as matrix units want it.

    Args:
      images: the pictures.
      rows: which rows of a picture each row of the result is made of.
      columns: the same for the columns.

    Returns:
      The colours as separate planes, in [0, 255], float32 [batch, channels, rows, columns].
    """
    batch, height, width, channels = images.shape
    combine = _read if using_cpu_kernels() else _multiply
    # Bytes are exact in bfloat16. TPUs transpose it faster than bytes, which XLA would do without the barrier, and
    # multiply it by a matrix in half of the passes that float32 takes.
    x = images if using_cpu_kernels() else materialize(images.astype(jnp.bfloat16))
    # What is resampled is the second axis, and the rest of a picture is the third.
    x = materialize(combine(x.reshape(batch, height, -1), rows))
    x = materialize(x.reshape(batch, -1, width, channels).transpose(0, 2, 3, 1))
    x = combine(x.reshape(batch, width, -1), columns)
    # Rounding takes some pixels just out of range.
    x = materialize(jnp.clip(x, 0, 255))
    return x.reshape(batch, -1, channels, rows.lines.shape[2]).transpose(0, 2, 3, 1)


def _read(x: Lines, taps: Taps) -> Float[Array, "batch result width"]:
    """Reads the lines of one tap after the other, and adds them up."""
    read = [weight[..., None] * jax.vmap(_take)(x, lines) for lines, weight in zip(*taps, strict=True)]
    return functools.reduce(operator.add, read)


def _take(lines: Array, index: Int[Array, " result"]) -> Float[Array, "result width"]:
    return lines.at[index].get(mode="promise_in_bounds").astype(jnp.float32)


def _multiply(x: Float[Array, "batch length width"], taps: Taps) -> Float[Array, "batch result width"]:
    """Multiplies by matrices of the weights, in float32."""
    chosen = taps.lines[..., None] == jnp.arange(x.shape[1])[None, None, None, :]
    matrices = jnp.where(chosen, taps.weight[..., None], 0).sum(0)
    return jnp.einsum("brl,blw->brw", matrices, x.astype(jnp.float32), precision=lax.Precision.HIGHEST)
