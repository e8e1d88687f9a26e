"""Batch normalisation, the sum with a residual, and the activation, as CPU kernels."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxcnn.ops.barrier import once

PRODUCTS_BELOW = 64
"""Channels below which a sum of products is faster in two loops, a product and a sum (524,288 x 32: 4.3 and 3 ms)."""

type Map = Float[Array, "*batch channels"]
type Rows = Float[Array, "positions channels"]
type PerChannel = Float[Array, " channels"]


class Normalised(NamedTuple):
    """A normalised map, and the statistics it was normalised by, through which no gradient flows."""

    y: Map
    mean: PerChannel
    var: PerChannel


class _Saved(NamedTuple):
    """What the gradient needs; `factor` and `offset` map z to what goes into the activation, but for the residual."""

    z: Rows
    y: Rows | None
    mean: PerChannel
    inverse_std: PerChannel
    factor: PerChannel
    offset: PerChannel


def batch_norm_act(
    z: Map,
    scale: PerChannel,
    bias: PerChannel,
    residual: Map | None = None,
    *,
    epsilon: float,
    negative_slope: float,
) -> Normalised:
    """Normalises each channel by its mean and variance over all other axes, adds the residual, takes the LeakyReLU.

    Everything is computed in float32 and rounded once, to the type of z; the variance is the biased one.

    Args:
      z: what to normalise.
      scale: float32.
      bias: float32.
      residual: of the shape and type of z.
      epsilon: added to the variance.
      negative_slope: of the activation, from 0 (ReLU) to 1 (none).
    """
    rows = z.reshape(-1, z.shape[-1])
    others = None if residual is None else residual.reshape(rows.shape)
    y, mean, var = _norm_act(rows, scale, bias, others, epsilon, negative_slope)
    return Normalised(y.reshape(z.shape), mean, var)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _norm_act(
    z: Rows, scale: PerChannel, bias: PerChannel, residual: Rows | None, epsilon: float, negative_slope: float
) -> Normalised:
    return _forward(z, scale, bias, residual, epsilon, negative_slope)[0]


def _forward(
    z: Rows, scale: PerChannel, bias: PerChannel, residual: Rows | None, epsilon: float, negative_slope: float
) -> tuple[Normalised, _Saved]:
    z, mean, var = _statistics(z)
    inverse_std = lax.rsqrt(var + epsilon)
    factor = once(scale * inverse_std)
    offset = once(bias - mean * factor)
    total = z.astype(jnp.float32) * factor[None] + offset[None]
    if residual is not None:
        total = total + residual.astype(jnp.float32)
    y = once(jnp.maximum(total, negative_slope * total).astype(z.dtype))
    kept = None if residual is None else y
    return Normalised(y, mean, var), _Saved(z, kept, mean, inverse_std, factor, offset)


def _backward(
    epsilon: float, negative_slope: float, saved: _Saved, gradients: Normalised
) -> tuple[Rows, PerChannel, PerChannel, Rows | None]:
    del epsilon
    z, dy = saved.z, gradients.y
    if saved.y is None:  # the sign of what went into the activation follows from z, which is read anyway
        positive = z.astype(jnp.float32) * saved.factor[None] + saved.offset[None] > 0
    else:
        positive = saved.y.astype(jnp.float32) > 0
    wide = dy.astype(jnp.float32)
    wide = jnp.where(positive, wide, negative_slope * wide)
    if z.shape[-1] < PRODUCTS_BELOW:
        product = wide * z.astype(jnp.float32)
        dtotal, product = lax.optimization_barrier((wide.astype(dy.dtype), product.astype(dy.dtype)))  # type: ignore[no-untyped-call]
        dbias, dproduct = _sum(dtotal), _sum(product)
    else:
        dtotal = once(wide.astype(dy.dtype))
        dbias = _sum(dtotal)
        apart, z_again, dbias = lax.optimization_barrier((dtotal, z, dbias))  # type: ignore[no-untyped-call]
        dproduct = (apart.astype(jnp.float32) * z_again.astype(jnp.float32)).sum(0)
    dscale = saved.inverse_std * (dproduct - saved.mean * dbias)
    slope = once(-saved.factor * saved.inverse_std * dscale / z.shape[0])
    constant = once(-saved.factor * dbias / z.shape[0] - slope * saved.mean)
    dz = dtotal.astype(jnp.float32) * saved.factor[None] + z.astype(jnp.float32) * slope[None] + constant[None]
    return once(dz.astype(z.dtype)), dscale, dbias, None if saved.y is None else dtotal


_norm_act.defvjp(_forward, _backward)


def _statistics(z: Rows) -> tuple[Rows, PerChannel, PerChannel]:
    """Mean and biased variance in float32, and z to go on with.

    XLA has a fast kernel for a single sum that widens what it reads on the way, and nothing like it for two sums at
    once, so that they are kept apart, from each other and from what else is done with z (131,072 x 64: .4 rather than
    3.7 ms).
    """
    total = _sum(z)
    z, total = lax.optimization_barrier((z, total))  # type: ignore[no-untyped-call]
    squares = lax.square(z.astype(jnp.float32)).sum(0)
    z, squares = lax.optimization_barrier((z, squares))  # type: ignore[no-untyped-call]
    mean = total / z.shape[0]
    return z, mean, jnp.maximum(squares / z.shape[0] - lax.square(mean), 0)


def _sum(x: Rows) -> PerChannel:
    return once(x).astype(jnp.float32).sum(0)
