"""Batch normalisation with residual sum and activation: by XLA, or by a CPU kernel.

The three are one operation because each is bound by memory, and the kernel makes one pass over the map for all of them.
"""

import math
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex64, Float

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.dispatch import using_cpu_kernels
from jaxcnn.ops.layout import in_hwnc, pointwise

PIECES = 16
"""Parts of a map that `_two_sums` adds to each other before it sums over positions."""

SAMPLES = 64
"""Rows of a map whose mean is subtracted from all of them before they are squared."""

_norm_group = jax.make_user_context(default_value=None)  # type: ignore[no-untyped-call]

type Map = Float[Array, "*batch channels"]
type Rows = Float[Array, "positions channels"]
type PerChannel = Float[Array, " channels"]


@dataclass(frozen=True)
class Activation:
    """A LeakyReLU, cut off at a ceiling.

    Attributes:
      negative_slope: from 0 (ReLU) to 1 (identity).
      ceiling: largest result, such as 6 (ReLU6); None for no limit.
    """

    negative_slope: float = 0.0
    ceiling: float | None = None

    def __call__(self, x: Array) -> Array:
        """Applies it to an array of any shape, in the operations that other runtimes know best."""
        if self.negative_slope != 1:
            x = jax.nn.leaky_relu(x, negative_slope=self.negative_slope) if self.negative_slope > 0 else jax.nn.relu(x)
        return x if self.ceiling is None else jnp.minimum(x, self.ceiling)

    def on_cpu(self, x: Array) -> Array:
        """Applies it without a comparison, which XLA vectorises better."""
        y = jnp.maximum(x, self.negative_slope * x)
        return y if self.ceiling is None else jnp.minimum(y, self.ceiling)

    def gradient(self, value: Array, dy: Array) -> Array:
        """The gradient of the input, given its value, or the result, and the gradient of the result."""
        dx = jnp.where(value > 0, dy, self.negative_slope * dy)
        return dx if self.ceiling is None else jnp.where(value < self.ceiling, dx, 0.0)


IDENTITY = Activation(negative_slope=1.0)
RELU = Activation()
RELU6 = Activation(ceiling=6.0)


class Normalised(NamedTuple):
    """A normalised map, and the statistics of the batch, which have no gradient in the CPU kernel.

    Attributes:
      y: the result.
      mean: mean of each channel, float32.
      var: biased variance of each channel, float32.
    """

    y: Map
    mean: PerChannel
    var: PerChannel


def use_norm_group(size: int | None) -> AbstractContextManager[None]:
    """Context in which `batch_norm_act` takes the statistics of groups of successive examples; None: of all.

    A network enters it in `apply`, see `jaxcnn.models.network`.
    """
    context: AbstractContextManager[None] = _norm_group(size)
    return context


def batch_norm_act(
    x: Map,
    scale: PerChannel,
    bias: PerChannel,
    residual: Map | None = None,
    *,
    epsilon: float,
    activation: Activation,
    near_mean: PerChannel | None = None,
) -> Normalised:
    """Normalises each channel over all other axes, adds the residual, applies the activation (Ioffe and Szegedy 2015).

    Everything is computed in float32 and rounded once, to the type of x.

    Args:
      x: [..., channels], what to normalise.
      scale: float32, factor of each channel after normalising.
      bias: float32, added to each channel after scaling.
      residual: of the shape and type of x; None adds nothing.
      epsilon: added to the variance.
      activation: of the sum.
      near_mean: float32, what to subtract before values are squared. None: the mean of some of them, which several
        devices would have to exchange. No effect on groups and in the CPU kernel, which are on one device.

    Returns:
      The normalised map and its statistics; their means over the groups under `use_norm_group` (Hoffer et al. 2017).
    """
    maps = (x,) if residual is None else (x, residual)
    group = _norm_group.value
    if group is not None and group < len(x):
        with use_norm_group(None):
            normalise = partial(batch_norm_act, epsilon=epsilon, activation=activation)
            first, *rest = (part.reshape(-1, group, *part.shape[1:]) for part in maps)
            parts: Any = jax.vmap(normalise, (0, None, None, *(0 for _ in rest)))(first, scale, bias, *rest)
        return Normalised(parts.y.reshape(x.shape), parts.mean.mean(0), parts.var.mean(0))
    if using_cpu_kernels():
        return in_hwnc(partial(_batch_norm_act_on_cpu, scale, bias, epsilon, activation), *maps)
    rows = x.reshape(-1, x.shape[-1])
    shift = _near_mean(rows) if near_mean is None else lax.stop_gradient(near_mean)
    shifted, axes = x.astype(jnp.float32) - shift.reshape((1,) * (x.ndim - 1) + (-1,)), tuple(range(x.ndim - 1))
    mean, var = _moments(shift, shifted.mean(axes), lax.square(shifted).mean(axes))
    factor = scale * lax.rsqrt(var + epsilon)
    y = affine_act(x, factor, bias - mean * factor, residual, activation=activation)
    return Normalised(y, mean, var)


def affine_act(
    x: Map, factor: PerChannel, offset: PerChannel, residual: Map | None = None, *, activation: Activation
) -> Map:
    """Scales and shifts each channel, adds the residual, applies the activation: batch normalisation at inference.

    Everything is computed in float32 and rounded once, to the type of x.

    Args:
      x: [..., channels].
      factor: float32, multiplies each channel.
      offset: float32, added to each channel.
      residual: of the shape and type of x; None adds nothing.
      activation: of the sum.
    """
    maps = (x,) if residual is None else (x, residual)
    return pointwise(partial(_affine_act, factor, offset, activation), *maps)


def _affine_act(factor: PerChannel, offset: PerChannel, activation: Activation, x: Map, *residual: Map) -> Map:
    shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
    y = x.astype(jnp.float32) * factor.reshape(shape) + offset.reshape(shape)
    for summand in residual:
        y = y + summand.astype(jnp.float32)
    return activation(y).astype(x.dtype)


class _Saved(NamedTuple):
    """What the backward pass needs.

    Attributes:
      z: what was normalised.
      y: the result, only if there was a residual.
      mean: of each channel.
      inverse_std: of each channel.
      factor: the activation's input is `factor * z + offset`, plus the residual.
      offset: see `factor`.
    """

    z: Rows
    y: Rows | None
    mean: PerChannel
    inverse_std: PerChannel
    factor: PerChannel
    offset: PerChannel


def _batch_norm_act_on_cpu(
    scale: PerChannel, bias: PerChannel, epsilon: float, activation: Activation, z: Map, residual: Map | None = None
) -> Normalised:
    rows = z.reshape(-1, z.shape[-1])
    residual_rows = None if residual is None else residual.reshape(rows.shape)
    y, mean, var = _norm_act(rows, scale, bias, residual_rows, epsilon, activation)
    return Normalised(y.reshape(z.shape), mean, var)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _norm_act(
    z: Rows, scale: PerChannel, bias: PerChannel, residual: Rows | None, epsilon: float, activation: Activation
) -> Normalised:
    return _forward(z, scale, bias, residual, epsilon, activation)[0]


def _forward(
    z: Rows, scale: PerChannel, bias: PerChannel, residual: Rows | None, epsilon: float, activation: Activation
) -> tuple[Normalised, _Saved]:
    mean, var = _statistics(z)
    inverse_std = lax.rsqrt(var + epsilon)
    # Without barriers XLA would compute these again for each position.
    factor = materialize(scale * inverse_std)
    offset = materialize(bias - mean * factor)
    total = z.astype(jnp.float32) * factor[None] + offset[None]
    if residual is not None:
        total = total + residual.astype(jnp.float32)
    y = materialize(activation.on_cpu(total).astype(z.dtype))
    # The backward pass needs to know where the activation bends, which without a residual follows from z.
    kept = None if residual is None else y
    return Normalised(y, mean, var), _Saved(z, kept, mean, inverse_std, factor, offset)


def _backward(
    epsilon: float, activation: Activation, saved: _Saved, gradients: Normalised
) -> tuple[Rows, PerChannel, PerChannel, Rows | None]:
    """Gradients of z, scale, bias and residual, in two passes over the maps: one for sums, one for the result."""
    del epsilon
    z, dy = saved.z, gradients.y
    y = () if saved.y is None else (saved.y,)
    dtotal = partial(_activation_gradient, saved.factor, saved.offset, activation)
    dbias, dproduct = _two_sums(lambda dy, z, *y: (dtotal(dy, z, *y), z.astype(jnp.float32)), dy, z, *y)
    dscale = saved.inverse_std * (dproduct - saved.mean * dbias)
    # The gradient of z is affine in z and in the gradient of the activation's input, with these coefficients.
    slope = materialize(-saved.factor * saved.inverse_std * dscale / z.shape[0])
    constant = materialize(-saved.factor * dbias / z.shape[0] - slope * saved.mean)
    wide = dtotal(dy, z, *y)
    dz = wide * saved.factor[None] + z.astype(jnp.float32) * slope[None] + constant[None]
    return materialize(dz.astype(z.dtype)), dscale, dbias, None if saved.y is None else wide.astype(dy.dtype)


_norm_act.defvjp(_forward, _backward)


def _activation_gradient(
    factor: PerChannel, offset: PerChannel, activation: Activation, dy: Rows, z: Rows, y: Rows | None = None
) -> Rows:
    """The gradient of the activation's input, whose slope follows from y where there is one, else from z."""
    value = z.astype(jnp.float32) * factor[None] + offset[None] if y is None else y.astype(jnp.float32)
    return activation.gradient(value, dy.astype(jnp.float32))


def _statistics(z: Rows) -> tuple[PerChannel, PerChannel]:
    """Mean and biased variance in float32."""
    shift = materialize(_near_mean(z))
    total, squares = _two_sums(lambda z: (z.astype(jnp.float32) - shift[None],) * 2, z)
    return _moments(shift, total / z.shape[0], squares / z.shape[0])


def _near_mean(z: Rows) -> PerChannel:
    """The mean of each channel over at most `SAMPLES` evenly spaced rows, without a gradient."""
    step = -(-z.shape[0] // SAMPLES)
    return lax.stop_gradient(z[step // 2 :: step].astype(jnp.float32).mean(0))


def _moments(shift: PerChannel, mean: PerChannel, squares: PerChannel) -> tuple[PerChannel, PerChannel]:
    """Mean and variance of each channel, from the means of values and squares after `shift` was subtracted.

    The squares need one pass over the map instead of two. Without the shift, float32 would lose the variance of a
    channel whose mean is a thousand times its standard deviation (Chan et al. 1983).
    """
    # Rounding can take the variance just below zero.
    return shift + mean, jnp.maximum(squares - lax.square(mean), 0)


def _two_sums(factors: Callable[..., tuple[Rows, Rows]], *maps: Rows) -> tuple[PerChannel, PerChannel]:
    """The sums over positions of a first factor, and of its product with a second, in one pass over the maps.

    XLA has no fast loop for two sums at once, nor for a sum of what takes much to compute. Two tricks avoid both: parts
    of the maps are first added to each other, elementwise, which XLA does as fast as memory allows; and a complex
    number carries both sums through one loop (524,288 x 32, the sums of the gradient: 1.7 instead of 4.2 ms).

    Args:
      factors: computes the two factors from the same rows of all maps.
      maps: float, of one shape.
    """
    pieces = math.gcd(PIECES, maps[0].shape[0])
    parts = [rows.reshape(pieces, -1, rows.shape[-1]) for rows in maps]

    def both(piece: int) -> Complex64[Array, "positions channels"]:
        first, second = factors(*(part[piece] for part in parts))
        return lax.complex(first, first * second)

    total = materialize(reduce(operator.add, map(both, range(pieces)))).sum(0)
    return total.real, total.imag
