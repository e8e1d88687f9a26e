"""The step of a run: `train_step` with the settings of an epoch."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxcnn import data
from jaxcnn.augment import augment
from jaxcnn.distributed import shard_batch
from jaxcnn.memory import needed_bytes
from jaxcnn.state import TrainState
from jaxcnn.step import StepMetrics, step_keys, train_step
from jaxcnn.training_run import Run, batches_from


def take_step(run: Run, state: TrainState, batch: data.Batch, *, epoch: int) -> tuple[TrainState, StepMetrics]:
    """Takes one training step with the settings of an epoch; see `step.train_step`.

    Args:
      run: the run.
      state: consumed; use the returned one.
      batch: the pictures of the step.
      epoch: the epoch, counted from 0; decides the resolution and the augmentation.
    """
    arguments, options = _step_arguments(run, state, batch, epoch=epoch)
    taken: tuple[TrainState, StepMetrics] = train_step(*arguments, **options)
    return taken


def compile_step(run: Run, state: TrainState, batch: data.Batch, *, epoch: int) -> int:
    """Compiles what `take_step` runs with the same arguments, unless it is compiled already.

    Returns:
      The bytes of memory that it needs, without its arguments.
    """
    arguments, options = _step_arguments(run, state, batch, epoch=epoch)
    return needed_bytes(train_step.jitted().lower(*arguments, **options).compile())


def _step_arguments(
    run: Run, state: TrainState, batch: data.Batch, *, epoch: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and the named arguments of `step.train_step`."""
    config = run.config
    images, labels = shard_batch(batch.images, run.mesh), shard_batch(batch.labels, run.mesh)
    changes, taught = _augment_options(run, epoch), None
    if run.teachers is not None:
        taught = run.teachers.predict(state.step, images, labels, run.key, **changes)
    return (state, images, labels, run.key, taught), {
        "model": run.model,
        "optimizer": run.optimizer,
        "augment_config": changes["config"],
        "classes": changes["classes"],
        "resolution": changes["resolution"],
        "label_smoothing": config.label_smoothing,
        "average_decay": config.optim.ema_decay,
        "shown": changes["shown"],
        "mesh": run.mesh,
        "accumulate": config.parallel.accumulate,
        "remat": config.parallel.remat,
        "distill_config": config.distill,
    }


def augment_in(run: Run, epoch: int) -> Callable[..., tuple[Float[Array, "batch side side 3"], Array]]:
    """Returns `augment` with the settings of an epoch: a function of a key, pictures and labels."""
    return partial(augment, **_augment_options(run, epoch))


def _augment_options(run: Run, epoch: int) -> dict[str, Any]:
    """Returns the named arguments of `augment` with the settings of an epoch."""
    return {
        "config": run.augmentation(epoch),
        "classes": len(run.dataset.names),
        "resolution": run.config.resolution(epoch),
        "shown": run.dataset.train.side,
    }


def augment_some(run: Run, count: int) -> UInt8[np.ndarray, "count side side 3"]:
    """Returns the first pictures of the first batch, or all of a smaller one, augmented as at the start of a run."""
    rows = np.arange(min(count, run.config.batch_size))
    with contextlib.closing(batches_from(run, 0, rows=rows)) as batches:
        batch = next(batches)
    key, _ = step_keys(run.key, jnp.int32(0))
    augmented, _ = jax.jit(augment_in(run, 0))(key, jnp.asarray(batch.images), jnp.asarray(batch.labels))
    return np.asarray(augmented).round().astype(np.uint8)
