"""Finding the first value that is not finite in a training step."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcnn.distributed import fetch_state
from jaxcnn.errors import UserError
from jaxcnn.run_step import augment_in
from jaxcnn.state import TrainState, Variables
from jaxcnn.step import step_keys
from jaxcnn.training_run import Run, batches_from


class _NotFiniteError(Exception):
    """Ends the search of `first_not_finite` at a layer."""


def first_not_finite(
    variables: Variables, inputs: Float[Array, "batch side side 3"], dropout_key: jax.Array, *, model: nn.Module
) -> str:
    """Finds where the first NaN or infinity of a training step is.

    Runs the forward pass layer by layer, without compiling it.

    Args:
      variables: the variables before the step.
      inputs: the augmented batch.
      dropout_key: the key of the step's dropout.
      model: the network.

    Returns:
      The path of the first parameter, else of the first layer's output, that is not finite. If the forward pass is
      finite, it is the loss or the norm of the gradient, which can overflow.
    """
    # The optimizer may have overflowed in the step before, whose loss and gradient were finite.
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not bool(jnp.isfinite(leaf).all()):
            return jax.tree_util.keystr(path, simple=True, separator="/")

    def check(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*arguments, **options)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(outputs)):
            raise _NotFiniteError("/".join(context.module.path) or type(context.module).__name__)
        return outputs

    # Layers are checked in the order in which they return: the innermost first.
    try:
        with nn.intercept_methods(check):
            model.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key})
    except _NotFiniteError as found:
        return f"the output of {found}"
    return "the loss or the norm of its gradient"


def check_finite(run: Run, state: TrainState) -> None:
    """Raises a `UserError` if a loss or gradient was not finite; the message names the step and the place.

    The state is still as before that step. Its batch and its random numbers are functions of its number, so the step is
    repeated here, layer by layer.
    """
    if bool(state.finite):
        return
    step = int(state.step)
    epoch = step // run.steps_per_epoch
    # Repeat the step up to the network's input.
    with contextlib.closing(batches_from(run, step, rows=None)) as batches:
        batch = next(batches)
    # Every process repeats all of it on one of its devices.
    variables = state.variables if run.mesh is None else fetch_state(state.variables)
    augment_key, dropout_key = step_keys(run.key, jnp.int32(step))
    inputs, _ = augment_in(run, epoch)(augment_key, jnp.asarray(batch.images), jnp.asarray(batch.labels))
    place = first_not_finite(variables, inputs, dropout_key, model=run.model)
    raise UserError(
        f"training diverged: in step {step + 1} (epoch {step / run.steps_per_epoch:.2f}, learning rate "
        f"{float(run.schedule(step)):.3g}) {place} is the first value that is not finite; earlier "
        "checkpoints are whole. Lower --optim.learning_rate or set --optim.clip_norm, and give another --workdir"
    )
