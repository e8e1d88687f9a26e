"""The sum with one number for each channel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.dispatch import using_cpu_kernels
from jaxcnn.ops.layout import in_hwnc

type PerChannel = Float[Array, " channels"]
type Map = Float[Array, "*batch channels"]


def add_bias(x: Map, bias: PerChannel) -> Map:
    """Adds a bias to each channel; the result has the type of x.

    Args:
      x: [..., channels].
      bias: float32 [channels]; its gradient is float32 too.
    """
    return in_hwnc(_add_on_cpu, x, bias) if using_cpu_kernels() else _add(x, bias)


def _add(x: Map, bias: PerChannel) -> Map:
    # In float32, so that the bias' gradient is summed in it.
    return (x.astype(jnp.float32) + _as_row(bias, x.ndim)).astype(x.dtype)


def _as_row(bias: PerChannel, rank: int) -> Float[Array, "*ones channels"]:
    return bias.reshape(*(1,) * (rank - 1), -1)


@jax.custom_vjp
def _add_on_cpu(x: Map, bias: PerChannel) -> Map:
    return x + _as_row(bias.astype(x.dtype), x.ndim)


def _forward(x: Map, bias: PerChannel) -> tuple[Map, PerChannel]:
    return _add_on_cpu(x, bias), bias


def _backward(bias: PerChannel, dy: Map) -> tuple[Map, PerChannel]:
    # XLA takes several times as long for a sum over three axes of a map as for one over rows.
    rows = materialize(dy.reshape(-1, dy.shape[-1]))
    return dy, rows.astype(jnp.float32).sum(0).astype(bias.dtype)


_add_on_cpu.defvjp(_forward, _backward)
