"""The step of a run, traced without data: what compilers and exporters of other machines start from."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from jaxcnn.config import Config
from jaxcnn.data.resize import Resize
from jaxcnn.distributed import AXES, state_sharding
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.state import TrainState, first_state, init_variables
from jaxcnn.step import StepMetrics, train_step

TOTAL_STEPS = 10_000
"""Length of the schedule; it does not change the step."""


class Step(NamedTuple):
    """A training step and where it starts.

    Attributes:
      take: a function of state, images, labels and key, see `jaxcnn.step.train_step`.
      init: the state before the first step, a function of the key.
    """

    take: Callable[..., tuple[TrainState, StepMetrics]]
    init: Callable[..., TrainState]


def lower_step(config: Config, *, classes: int, mesh: Mesh | None) -> jax.stages.Lowered:
    """Traces the step of a run, on arrays of which only the shapes are known.

    Args:
      config: the settings.
      classes: number of classes.
      mesh: the devices to compile for; None: the one that JAX runs on.
    """
    step, arguments = abstract_step(config, classes=classes, mesh=mesh)
    return jax.jit(step, donate_argnames="state").lower(*arguments)


def abstract_step(config: Config, *, classes: int, mesh: Mesh | None) -> tuple[Any, tuple[Any, ...]]:
    """Returns the step of a run, and the shapes, types and layouts of its arguments: state, images, labels, key."""
    step = build_step(config, classes=classes, mesh=mesh)
    side, size = config.data.image_size, config.batch_size
    stored = side if _is_cropped_before(config) else Resize.of(config.data).stored(side)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state: TrainState = jax.eval_shape(step.init, key)
    images, labels = jax.eval_shape(
        lambda: (jnp.zeros((size, stored, stored, 3), jnp.uint8), jnp.zeros(size, jnp.int32))
    )
    if mesh is not None:
        whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXES,)))  # type: ignore[no-untyped-call]
        state = jax.tree.map(lambda leaf: _placed(leaf, state_sharding(leaf, mesh)), state)
        key = _placed(key, whole)
        images, labels = _placed(images, split), _placed(labels, split)
    return step.take, (state, images, labels, key)


def build_step(config: Config, *, classes: int, mesh: Mesh | None) -> Step:
    """Builds the step of a run as an accelerator takes it, in the epoch with the largest pictures."""
    # The type for an accelerator, whatever computes here.
    precision = "bfloat16" if config.model.precision == "auto" else config.model.precision
    model = registry.build(dataclasses.replace(config.model, precision=precision), classes=classes)
    optimizer = make_optimizer(config.optim, steps=TOTAL_STEPS)
    side, augmentation = config.data.image_size, config.augmentation(0)
    if _is_cropped_before(config):
        augmentation = dataclasses.replace(augmentation, crop_scale=None)
    take = partial(
        train_step.__wrapped__,
        model=model,
        optimizer=optimizer,
        augment_config=augmentation,
        classes=classes,
        resolution=largest_resolution(config),
        label_smoothing=config.label_smoothing,
        average_decay=config.optim.ema_decay,
        shown=side,
        mesh=mesh,
        accumulate=config.parallel.accumulate,
        remat=config.parallel.remat,
    )

    def init(key: Key[Array, ""]) -> TrainState:
        variables = init_variables(key, model=model, image_size=side)
        return first_state(variables, optimizer=optimizer, averaged=config.optim.ema_decay > 0)

    return Step(take, init)


def largest_resolution(config: Config) -> int:
    """Returns the side in pixels of the largest pictures that steps are taken with."""
    return max((side for _, side in config.resolutions), default=config.data.image_size)


def _is_cropped_before(config: Config) -> bool:
    """Whether random crops are taken as pictures are decoded, and not by the step; see `data.Split.cropped`."""
    return config.data.store == "encoded" and config.augment.crop_scale is not None


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # type: ignore[no-untyped-call]
