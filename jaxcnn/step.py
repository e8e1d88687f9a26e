"""One step of training and of evaluation: module-level pure functions, compiled once per resolution."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxcnn.augment import augment
from jaxcnn.config import AugmentConfig
from jaxcnn.ops.compiler import jit
from jaxcnn.state import TrainState, Variables


class StepMetrics(NamedTuple):
    """Sums over the pictures of a step; divide by `pictures` for means."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    pictures: Float[Array, ""]


def step_keys(key: Key[Array, ""], step: Int[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The keys of a step's augmentation and dropout, a pure function of the run's key and the step."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
    return augment_key, dropout_key


@partial(
    jit,
    static_argnames=(
        "model",
        "optimizer",
        "augment_config",
        "classes",
        "resolution",
        "label_smoothing",
        "average_decay",
    ),
    donate_argnames="state",
)
def train_step(
    state: TrainState,
    images: UInt8[Array, "batch side side 3"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augment_config: AugmentConfig,
    classes: int,
    resolution: int,
    label_smoothing: float,
    average_decay: float,
) -> tuple[TrainState, StepMetrics]:
    """Augments a batch and takes one optimizer step on its cross-entropy.

    Args:
      state: consumed; use the one returned.
      key: the run's key; the step number is folded in, so no random state is kept.
      resolution: side of the pictures that the model sees; each value is compiled once.
      average_decay: decay of the moving average of parameters and batch statistics, if the state keeps one.
    """
    augment_key, dropout_key = step_keys(key, state.step)
    inputs, targets = augment(
        augment_key, images, labels, config=augment_config, classes=classes, resolution=resolution
    )
    smooth = optax.smooth_labels(targets, label_smoothing)

    def loss_of(params: Variables) -> tuple[Float[Array, ""], tuple[Float[Array, "batch classes"], Variables]]:
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.variables["batch_stats"]},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss = optax.softmax_cross_entropy(logits, smooth).mean()
        return loss, (logits, updates["batch_stats"])

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.variables["params"])
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables["params"])
    variables = {"params": optax.apply_updates(state.variables["params"], updates), "batch_stats": batch_stats}
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
    after = TrainState(
        step=state.step + 1,
        variables=variables,
        opt_state=opt_state,
        average=_averaged(state.average, variables, step=state.step, decay=average_decay),
        finite=finite,
    )
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)._replace(finite=finite)
    correct = (logits.argmax(-1) == targets.argmax(-1)).sum().astype(jnp.float32)
    pictures = jnp.float32(labels.shape[0])
    return kept, StepMetrics(loss=loss * pictures, correct=correct, pictures=pictures)


@partial(jit, static_argnames="model")
def eval_step(
    variables: Variables, images: UInt8[Array, "batch side side 3"], *, model: nn.Module
) -> Float[Array, "batch classes"]:
    """Logits of a batch, with batch statistics as they are and no dropout."""
    logits = model.apply(variables, images, train=False)
    assert isinstance(logits, jax.Array)
    return logits


def _averaged(
    average: Variables | None, variables: Variables, *, step: Int[Array, ""], decay: float
) -> Variables | None:
    """Moves the average towards the variables.

    The decay starts low, (1 + step) / (10 + step), so that the initial parameters are soon forgotten
    (TensorFlow's ExponentialMovingAverage does the same).
    """
    if average is None:
        return None
    number = step.astype(jnp.float32)
    weight = jnp.maximum(1 - decay, 1 - (1 + number) / (10 + number))
    moved: Variables = optax.incremental_update(variables, average, weight)
    return moved
