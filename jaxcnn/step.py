"""One step of training and one of evaluation: module-level pure functions, compiled once per resolution."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxcnn.augment import augment
from jaxcnn.config import AugmentConfig, DistillConfig
from jaxcnn.distributed import constrain_batch, constrain_state
from jaxcnn.models.features import pooled_features
from jaxcnn.models.network import Network
from jaxcnn.ops.compiler import jit
from jaxcnn.ops.device_sum import sum_over
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.precision import exact_products
from jaxcnn.state import TrainState, Variables

WITHOUT_TEACHERS = DistillConfig()


class StepMetrics(NamedTuple):
    """Sums over the pictures of a step; divide by `pictures` for means.

    Attributes:
      loss: sum of the losses in nats: cross-entropies, with label smoothing and the share of the teachers.
      correct: pictures whose class has the highest logit. A mixed picture counts for the class of its larger share.
      pictures: pictures in the batch.
    """

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
        "shown",
        "label_smoothing",
        "average_decay",
        "mesh",
        "accumulate",
        "remat",
        "distill_config",
    ),
    donate_argnames="state",
)
def train_step(
    state: TrainState,
    images: UInt8[Array, "batch side side 3"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    taught: Float[Array, "batch classes"] | None = None,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    augment_config: AugmentConfig,
    classes: int,
    resolution: int,
    label_smoothing: float,
    average_decay: float,
    shown: int | None = None,
    mesh: Mesh | None = None,
    accumulate: int = 1,
    remat: bool = False,
    distill_config: DistillConfig = WITHOUT_TEACHERS,
) -> tuple[TrainState, StepMetrics]:
    """Augments a batch and takes one optimizer step on its mean cross-entropy.

    If the loss or the norm of the gradient is not finite, the returned state differs only in `finite`.

    Args:
      state: consumed; use the returned one.
      images: RGB pictures.
      key: the run's key. The step number is folded in, so no random state is kept.
      taught: the probabilities that teachers give; None without teachers.
      model: the network.
      optimizer: the optimizer, with the learning rate schedule in it.
      augment_config: random changes to the pictures.
      resolution: side in pixels to which the pictures are resized. Each value is compiled once.
      label_smoothing: share of the target that is spread over all classes.
      average_decay: decay of the moving average, if the state keeps one.
      shown: side of the middle of the pictures that evaluation sees; None: all of them.
      mesh: the devices, on which state and batch are laid out as in `jaxcnn.distributed`; None: one device.
      accumulate: parts of the batch that are computed one after the other.
      remat: compute all but convolutions and matrix products again in the backward pass.
      distill_config: how teachers and labels share the loss.
    """
    augment_key, dropout_key = step_keys(key, state.step)
    with use_cpu_kernels(getattr(model, "cpu_kernels", False)):
        inputs, targets = augment(
            augment_key, images, labels, config=augment_config, classes=classes, resolution=resolution, shown=shown
        )

    # Forward and backward pass.
    compute = partial(
        _compute_gradients,
        state.variables,
        compute_loss=partial(_compute_loss, model=model, distill_config=distill_config),
        label_smoothing=label_smoothing,
        remat=remat,
    )
    group, examples = getattr(model, "norm_group", None), _Examples(inputs, targets, taught)
    with sum_over(mesh):
        examples, passed = _pass_over(compute, examples, dropout_key, parts=accumulate, group=group)
    loss, logits, batch_stats, gradients = passed
    gradients = constrain_state(gradients, mesh)
    updated = _apply_gradients(state, gradients, batch_stats, optimizer=optimizer, average_decay=average_decay)

    # Once training has diverged the state stays as it was, so that the step can be repeated to find out where.
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)._replace(finite=finite)

    # The metrics are sums, so that the metrics of several steps can be added.
    correct = (logits.argmax(-1) == examples.targets.argmax(-1)).sum().astype(jnp.float32)
    pictures = jnp.float32(labels.shape[0])
    return constrain_state(after, mesh), StepMetrics(loss=loss * pictures, correct=correct, pictures=pictures)


@partial(jit, static_argnames=("model", "mesh"))
def eval_step(
    variables: Variables, images: UInt8[Array, "batch side side 3"], *, model: nn.Module, mesh: Mesh | None = None
) -> Float[Array, "batch classes"]:
    """The logits of a batch, with the running batch statistics and without dropout; laid out as the batch."""
    logits = model.apply(variables, images, train=False)
    assert isinstance(logits, jax.Array)
    return constrain_batch(logits, mesh)


def exact_eval_step(
    variables: Variables, images: UInt8[Array | np.ndarray, "batch side side 3"], *, model: nn.Module
) -> Float[Array, "batch classes"]:
    """`eval_step` with the products of float32 numbers as an exported model computes them, also on accelerators."""
    with exact_products():
        logits = eval_step(variables, images, model=model, mesh=None)  # As in training, so that it is compiled once.
    assert isinstance(logits, jax.Array)
    return logits


@partial(jit, static_argnames=("model", "mesh"))
def feature_step(
    variables: Variables, images: UInt8[Array, "batch side side 3"], *, model: Network, mesh: Mesh | None = None
) -> Float[Array, "batch features"]:
    """The features of a batch, which the head of the network takes, as in evaluation; laid out as the batch."""
    return constrain_batch(pooled_features(model, variables, images), mesh)


class _Examples(NamedTuple):
    """What a network learns from.

    Attributes:
      inputs: pictures.
      targets: the probability of each class by the labels.
      taught: the same by the teachers; None without teachers.
    """

    inputs: Float[Array, "*parts batch side side 3"]
    targets: Float[Array, "*parts batch classes"]
    taught: Float[Array, "*parts batch classes"] | None


class _Pass(NamedTuple):
    """The results of a forward and a backward pass.

    Attributes:
      loss: mean cross-entropy.
      logits: of every picture.
      batch_stats: updated running statistics.
      gradients: of the mean cross-entropy.
    """

    loss: Float[Array, ""]
    logits: Float[Array, "*parts batch classes"]
    batch_stats: Variables
    gradients: Variables


def _compute_gradients(
    variables: Variables,
    examples: _Examples,
    dropout_key: Key[Array, ""],
    *,
    compute_loss: Callable[..., Any],
    label_smoothing: float,
    remat: bool,
) -> _Pass:
    """A forward and a backward pass over a batch, or a part of one."""
    if remat:
        compute_loss = jax.checkpoint(compute_loss, policy=_is_product)
    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(compute_loss, has_aux=True)(
        variables["params"],
        variables["batch_stats"],
        examples._replace(targets=optax.smooth_labels(examples.targets, label_smoothing)),
        dropout_key,
    )
    return _Pass(loss, logits, batch_stats, gradients)


def _pass_over(
    compute: Callable[..., _Pass], examples: _Examples, dropout_key: Key[Array, ""], *, parts: int, group: int | None
) -> tuple[_Examples, _Pass]:
    """A forward and a backward pass over a batch, in parts; returns the examples in the order of the logits, too."""
    if parts == 1:
        return examples, compute(examples, dropout_key)
    examples = jax.tree.map(partial(_split, parts=parts, group=group), examples)
    return examples, _accumulate(compute, examples, dropout_key)


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether the results of an operation are kept for the backward pass."""
    return primitive.name in ("conv_general_dilated", "dot_general")


def _split(array: Float[Array, "batch ..."], parts: int, *, group: int | None) -> Float[Array, "{parts} part ..."]:
    """Splits a batch into parts of whole groups. Each part has groups from all over the batch, so from every device."""
    size = group or 1
    groups = array.reshape(-1, parts, size, *array.shape[1:]).swapaxes(0, 1)
    return groups.reshape(parts, -1, *array.shape[1:])


def _accumulate(
    compute: Callable[..., _Pass],
    examples: _Examples,
    dropout_key: Key[Array, ""],
) -> _Pass:
    """The means of the results of several parts of a batch, computed one after the other."""

    def add(total: Any, part: tuple[_Examples, Array]) -> tuple[Any, Array]:
        loss, logits, *rest = compute(*part)
        return jax.tree.map(jnp.add, total, (loss, *rest)), logits

    parts = len(examples.inputs)
    keys = jax.random.split(dropout_key, parts)
    loss, _, *rest = jax.eval_shape(compute, jax.tree.map(lambda array: array[0], examples), keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (loss, *rest))
    sums, logits = jax.lax.scan(add, zeros, (examples, keys))
    loss, batch_stats, gradients = jax.tree.map(lambda total: total / parts, sums)
    return _Pass(loss, logits, batch_stats, gradients)


def _compute_loss(
    params: Variables,
    batch_stats: Variables,
    examples: _Examples,
    dropout_key: Key[Array, ""],
    *,
    model: nn.Module,
    distill_config: DistillConfig,
) -> tuple[Float[Array, ""], tuple[Float[Array, "batch classes"], Variables]]:
    """The mean loss of a batch, with its logits and the updated batch statistics.

    The loss is the cross-entropy with the labels. With teachers, a share of it is the cross-entropy with their
    predictions at a temperature, times the square of that, which keeps its gradient as large (Hinton et al. 2015).
    """
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        examples.inputs,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": dropout_key},
    )
    loss = optax.softmax_cross_entropy(logits, examples.targets).mean()
    if examples.taught is not None:
        weight, temperature = distill_config.weight, distill_config.temperature
        distance = temperature**2 * optax.softmax_cross_entropy(logits / temperature, examples.taught).mean()
        loss = (1 - weight) * loss + weight * distance
    return loss, (logits, updated["batch_stats"])


def _apply_gradients(
    state: TrainState,
    gradients: Variables,
    batch_stats: Variables,
    *,
    optimizer: optax.GradientTransformation,
    average_decay: float,
) -> TrainState:
    """The state after an optimizer step, with the moving average updated."""
    params = state.variables["params"]
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
    average = _update_average(state.average, variables, step=state.step, decay=average_decay)
    return TrainState(
        step=state.step + 1, variables=variables, opt_state=opt_state, average=average, finite=state.finite
    )


def _update_average(
    average: Variables | None, variables: Variables, *, step: Int[Array, ""], decay: float
) -> Variables | None:
    """Moves the average towards the variables.

    The decay is at most (1 + step) / (10 + step), so that the initial parameters are soon forgotten, as in TensorFlow's
    ExponentialMovingAverage.
    """
    if average is None:
        return None
    number = step.astype(jnp.float32)
    weight = jnp.maximum(1 - decay, 1 - (1 + number) / (10 + number))
    moved: Variables = optax.incremental_update(variables, average, weight)
    return moved
