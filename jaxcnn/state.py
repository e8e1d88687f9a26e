"""The pytree that training carries from step to step."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, Key

Variables = dict[str, Any]
"""The inputs of a model besides the pictures: the collections `params` and `batch_stats`."""

CPU_INIT_OPTIONS = {"xla_backend_optimization_level": 1}
"""XLA options for the initialisation on a CPU, which runs once. By default XLA spends up to ten seconds on optimising
its loops of random numbers."""


class TrainState(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
      step: steps taken.
      variables: parameters and batch statistics, float32.
      opt_state: state of the optimizer.
      average: exponential moving average of `variables`; None if the run keeps none.
      finite: whether every loss and every gradient norm so far was finite. Once it is false, steps change nothing: the
        state stays as before the step that failed.
    """

    step: Int[Array, ""]
    variables: Variables
    opt_state: optax.OptState
    average: Variables | None
    finite: Bool[Array, ""]

    @property
    def evaluated(self) -> Variables:
        """The variables to evaluate and export: the average if there is one."""
        return self.variables if self.average is None else self.average


def init_variables(key: Key[Array, ""], *, model: nn.Module, image_size: int) -> Variables:
    """Initialises parameters and batch statistics, a pure function of the key.

    Args:
      key: the random key.
      model: the network.
      image_size: side of the pictures in pixels.
    """
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
    """The state before the first step, a pure function of the key.

    Args:
      key: the random key.
      model: the network.
      optimizer: the optimizer.
      image_size: side of the pictures in pixels.
      averaged: keep a moving average, which starts at the initial variables.
    """
    variables = complete(describe_variables(model, image_size), key, model=model, image_size=image_size)
    return first_state(variables, optimizer=optimizer, averaged=averaged)


def describe_variables(model: nn.Module, image_size: int) -> Variables:
    """Returns the shapes and types of the variables of a model, which takes no compilation."""
    shapes: Variables = jax.eval_shape(partial(init_variables, model=model, image_size=image_size), jax.random.key(0))
    return shapes


def complete(variables: Variables, key: Key[Array, ""], *, model: nn.Module, image_size: int) -> Variables:
    """Copies the arrays of a tree, and initialises what has only a shape in it, as `init_variables` would.

    Args:
      variables: arrays of NumPy or JAX, or their shapes, of the structure that `init_variables` has.
      key: the random key.
      model: the network.
      image_size: side of the pictures in pixels.
    """
    leaves, structure = jax.tree.flatten(variables)
    missing = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct))
    # Compiled as a whole, so that XLA drops the forward pass and all that is not asked for.
    options = CPU_INIT_OPTIONS if jax.default_backend() == "cpu" else {}
    init = jax.jit(_init_some, static_argnames=("model", "image_size", "places"), compiler_options=options)
    made = iter(init(key, model=model, image_size=image_size, places=missing) if missing else ())
    filled = [next(made) if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.array(leaf) for leaf in leaves]
    completed: Variables = jax.tree.unflatten(structure, filled)
    return completed


def _init_some(key: Key[Array, ""], *, model: nn.Module, image_size: int, places: tuple[int, ...]) -> list[Array]:
    """Returns the variables at some places of the flattened tree."""
    made = jax.tree.leaves(init_variables(key, model=model, image_size=image_size))
    return [made[place] for place in places]


def zero_state(model: nn.Module, *, optimizer: optax.GradientTransformation, image_size: int, averaged: bool) -> Any:
    """A state of NumPy's zeros with the shapes and types of `create_state`, for a checkpoint to be restored into."""
    variables = describe_variables(model, image_size)
    state = jax.eval_shape(partial(first_state, optimizer=optimizer, averaged=averaged), variables)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)


def first_state(variables: Variables, *, optimizer: optax.GradientTransformation, averaged: bool) -> TrainState:
    """The state before the first step with these variables; the average starts from them too."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=jax.jit(optimizer.init)(variables["params"]),  # At once: each array alone takes as long to compile.
        average=jax.tree.map(jnp.copy, variables) if averaged else None,
        finite=jnp.ones((), bool),
    )


def start_from(state: TrainState, variables: Variables) -> TrainState:
    """The state before the first step with other initial variables; the average starts from them too.

    The optimizer's state needs no change: it is zero before the first step, whatever the parameters are.

    Args:
      state: the state before the first step.
      variables: arrays of NumPy or JAX, of the same structure and shapes as in `state`.
    """

    def copy() -> Variables:
        copied: Variables = jax.tree.map(jnp.array, variables)
        return copied

    # Two copies: a step donates its state, so the two must not share memory.
    return state._replace(variables=copy(), average=None if state.average is None else copy())
