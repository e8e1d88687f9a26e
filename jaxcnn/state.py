"""The one pytree that training carries from step to step."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Key

Variables = dict[str, Any]
"""What a model computes from: the collections `params` and `batch_stats`."""

CPU_INIT_OPTIONS = {"xla_backend_optimization_level": 1}
"""For XLA on a CPU, of what runs once. At its usual level it takes up to ten seconds for loops of random numbers."""


class TrainState(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
      step: steps taken.
      variables: parameters and batch statistics, float32.
      opt_state: Optax's state.
      average: exponential moving average of `variables`; None where the run keeps none.
      finite: whether every loss and gradient's norm so far was finite. Once false, steps change nothing, so the
        state stays as it was before the step that failed.
    """

    step: Int[Array, ""]
    variables: Variables
    opt_state: optax.OptState
    average: Variables | None
    finite: Bool[Array, ""]

    @property
    def evaluated(self) -> Variables:
        """The variables to evaluate and export: the average where there is one."""
        return self.variables if self.average is None else self.average


def init_variables(key: Key[Array, ""], *, model: nn.Module, image_size: int) -> Variables:
    """Initial parameters and batch statistics."""
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3), jnp.uint8), train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def create_state(
    key: Key[Array, ""],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    averaged: bool,
) -> TrainState:
    """The state before the first step, a pure function of the key."""
    options = CPU_INIT_OPTIONS if jax.default_backend() == "cpu" else {}
    # Compiled as one, the network is not computed, only its variables are.
    init = jax.jit(init_variables, static_argnames=("model", "image_size"), compiler_options=options)
    variables = init(key, model=model, image_size=image_size)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
        average=jax.tree.map(jnp.copy, variables) if averaged else None,
        finite=jnp.ones((), bool),
    )


def start_from(state: TrainState, variables: Variables) -> TrainState:
    """The state before the first step with other variables, given as arrays of any kind.

    The average starts with them too. What the optimizers remember is zero before the first step, whatever the
    parameters are.
    """

    def copy() -> Variables:  # twice: a step may overwrite either in place
        copied: Variables = jax.tree.map(jnp.array, variables)
        return copied

    return state._replace(variables=copy(), average=None if state.average is None else copy())
