"""The training loop: epochs of steps, each epoch evaluated and saved."""

import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxcnn import data, models
from jaxcnn.augment import augment
from jaxcnn.config import Config
from jaxcnn.distributed import check_devices, replicate, shard_batch
from jaxcnn.divergence import first_not_finite
from jaxcnn.errors import UserError
from jaxcnn.evaluation import measure
from jaxcnn.metrics import Evaluation
from jaxcnn.optim import make_optimizer, make_schedule
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.run.metrics_log import MetricsLog
from jaxcnn.run.progress import TrainProgress, open_progress
from jaxcnn.signals import StopRequest, stop_on_signal
from jaxcnn.state import TrainState, Variables, create_state, start_from
from jaxcnn.step import StepMetrics, eval_step, step_keys, train_step
from jaxcnn.weights import Weights

LOG_SECONDS = 2.0
"""Time between two lines of the log: long enough that reading the metrics never holds the device up."""


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: Config
    dataset: data.Dataset
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps_per_epoch: int

    @property
    def key(self) -> Key[Array, ""]:
        """What all random numbers of the run come from."""
        return jax.random.key(self.config.seed)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs


def prepare(config: Config, dataset: data.Dataset) -> Run:
    """Builds model and optimizer for the settings and the data.

    Raises:
      UserError: there is nothing to tell apart, or the devices do not fit.
    """
    check_devices(config.batch_size)
    if len(dataset.names) < 2:
        raise UserError(f"{dataset.name} has only the class {dataset.names[0]!r}; a classifier needs two or more")
    steps_per_epoch = data.steps_per_epoch(dataset.train, batch_size=config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    return Run(
        config=config,
        dataset=dataset,
        model=models.build_here(config.model, classes=len(dataset.names)),
        optimizer=make_optimizer(config.optim, steps=total_steps),
        schedule=make_schedule(config.optim, steps=total_steps),
        steps_per_epoch=steps_per_epoch,
    )


def initial_state(run: Run, weights: Weights | None = None) -> TrainState:
    """The state before the first step, a pure function of the settings and of the weights to start from.

    Raises:
      UserError: the weights do not fit the network.
    """
    config = run.config
    state = create_state(
        run.key,
        model=run.model,
        optimizer=run.optimizer,
        image_size=config.data.image_size,
        averaged=config.optim.ema_decay > 0,
    )
    if weights is None:
        return state
    same_classes = weights.has_classes(run.dataset.names, run.dataset.wnids)
    return start_from(state, weights.fill(state.variables, with_head=same_classes))


def fit(run: Run, state: TrainState, *, checkpoints: Checkpoints, log: MetricsLog) -> bool:
    """Takes the remaining steps, epoch by epoch, and evaluates and saves the state after each epoch.

    The first SIGINT or SIGTERM ends it early, with the state saved; see `stop_on_signal`.

    Args:
      run: the run.
      state: consumed. Training continues after its last step.
      checkpoints: where states are saved.
      log: where metrics are written.

    Returns:
      Whether the run is complete; false if a signal ended it early.

    Raises:
      UserError: training diverged, or the disk is full.
    """
    state = replicate(state)
    first_step, epochs = int(state.step), run.config.epochs
    if first_step < run.total_steps:
        log.write("start", step=first_step, epoch=first_step / run.steps_per_epoch)
    with stop_on_signal() as stop, open_progress(total_steps=run.total_steps, first_step=first_step) as progress:
        for epoch in range(first_step // run.steps_per_epoch, epochs):
            result = train_epoch(
                run, state, epoch=epoch, checkpoints=checkpoints, log=log, progress=progress, stop=stop
            )
            state, stopped_by = result.state, result.stopped_by
            if stopped_by is None:
                scores = evaluate_variables(run, state.evaluated).scalars()
                log.write("validation", step=int(state.step), epoch=float(epoch + 1), **scores)
                checkpoints.save(state, metrics=scores)
                progress.say(
                    f"epoch {epoch + 1}/{epochs}: validation top-1 {scores['top1']:.4f}, loss {scores['loss']:.4f}; "
                    f"{result.images_per_second:,.0f} images/s"
                )
                if epoch + 1 < epochs:  # After the last epoch there is nothing left to stop.
                    stopped_by = stop.signal
            if stopped_by is not None:
                progress.say(f"stopped by {stopped_by.name} and saved at step {int(state.step):,}; run again to resume")
                return False
    return True


class EpochResult(NamedTuple):
    """What an epoch of training came to.

    Attributes:
      state: after its last step.
      stopped_by: the signal that ended it before its last step, with the state saved; None if it is complete.
      images_per_second: training pictures over time.
    """

    state: TrainState
    stopped_by: signal.Signals | None
    images_per_second: float


def train_epoch(
    run: Run,
    state: TrainState,
    *,
    epoch: int,
    checkpoints: Checkpoints,
    log: MetricsLog,
    progress: TrainProgress,
    stop: StopRequest,
) -> EpochResult:
    """Takes the remaining steps of an epoch; when asked to stop before the last, saves the state and returns early.

    Raises:
      UserError: training diverged, or the disk is full.
    """
    config, end = run.config, (epoch + 1) * run.steps_per_epoch
    first = int(state.step)
    batches = data.train_batches(run.dataset.train, seed=config.seed, batch_size=config.batch_size, start_step=first)
    window: list[StepMetrics] = []
    stopped_by: signal.Signals | None = None
    started = logged = saved = time.monotonic()
    with contextlib.closing(batches):
        for step, batch in zip(range(first + 1, end + 1), batches, strict=False):
            state, metrics = take_step(run, state, batch, epoch=epoch)
            _wait(metrics, window)
            window.append(metrics)
            now = time.monotonic()
            if now - logged >= LOG_SECONDS or step == end:
                logged = _log_window(run, state, window, since=logged, log=log, progress=progress)
                window = []
            if step < end and (stop.signal or now - saved >= 60 * config.checkpoint_minutes):
                check_finite(run, state)
                checkpoints.save(state)
                saved, stopped_by = time.monotonic(), stop.signal
                if stopped_by is not None:
                    break
    pictures = (int(state.step) - first) * config.batch_size
    return EpochResult(state, stopped_by, images_per_second=pictures / _since(started))


def _wait(metrics: StepMetrics, earlier: Sequence[StepMetrics]) -> None:
    """Keeps the host at most one step ahead of the device: a longer queue would only hold batches in memory.

    On a CPU even one queued step would hold the feature maps of a second step, which are gigabytes.
    """
    if jax.default_backend() == "cpu":
        metrics.loss.block_until_ready()
    elif earlier:
        earlier[-1].loss.block_until_ready()


def take_step(run: Run, state: TrainState, batch: data.Batch, *, epoch: int) -> tuple[TrainState, StepMetrics]:
    """One training step as the settings say."""
    config = run.config
    taken: tuple[TrainState, StepMetrics] = train_step(
        state,
        shard_batch(batch.images),
        shard_batch(batch.labels),
        run.key,
        model=run.model,
        optimizer=run.optimizer,
        augment_config=config.augmentation(epoch),
        classes=len(run.dataset.names),
        resolution=config.resolution(epoch),
        label_smoothing=config.label_smoothing,
        average_decay=config.optim.ema_decay,
    )
    return taken


def evaluate_variables(run: Run, variables: Variables) -> Evaluation:
    """Metrics on every validation picture."""
    return measure(
        lambda images: eval_step(variables, shard_batch(images), model=run.model),
        run.dataset.validation,
        classes=len(run.dataset.names),
        batch_size=run.config.batch_size,
    )


def check_finite(run: Run, state: TrainState) -> None:
    """Raises a `UserError` that says where, if a loss or the norm of a gradient was not finite.

    The state is still the one before that step, and the step's batch and random numbers are functions of its
    number, so it can be repeated layer by layer.
    """
    if bool(state.finite):
        return
    config, step = run.config, int(state.step)
    batches = data.train_batches(run.dataset.train, seed=config.seed, batch_size=config.batch_size, start_step=step)
    with contextlib.closing(batches):
        batch = next(batches)
    augment_key, dropout_key = step_keys(run.key, state.step)
    epoch = step // run.steps_per_epoch
    inputs, _ = augment(
        augment_key,
        jnp.asarray(batch.images),
        jnp.asarray(batch.labels),
        config=config.augmentation(epoch),
        classes=len(run.dataset.names),
        resolution=config.resolution(epoch),
    )
    place = first_not_finite(state.variables, inputs, dropout_key, model=run.model)
    raise UserError(
        f"training diverged: in step {step + 1} (epoch {step / run.steps_per_epoch:.2f}, learning rate "
        f"{float(run.schedule(step)):.3g}) {place} is the first value that is not finite; earlier "
        "checkpoints are whole. Lower --optim.learning_rate or set --optim.clip_norm, and give another --workdir"
    )


def _log_window(
    run: Run,
    state: TrainState,
    window: list[StepMetrics],
    *,
    since: float,
    log: MetricsLog,
    progress: TrainProgress,
) -> float:
    """Waits for the last steps, tells their metrics, and returns the time at which they were done."""
    loss, correct, pictures = (float(sum(each)) for each in zip(*jax.device_get(window), strict=True))
    done, seconds = time.monotonic(), _since(since)
    check_finite(run, state)
    step = int(state.step)
    epoch, rate = step / run.steps_per_epoch, pictures / seconds
    log.write(
        "train",
        step=step,
        epoch=epoch,
        loss=loss / pictures,
        top1=correct / pictures,
        learning_rate=float(run.schedule(step - 1)),
        resolution=float(run.config.resolution((step - 1) // run.steps_per_epoch)),
        images_per_second=rate,
    )
    progress.update(step=step, epoch=f"{epoch:.2f}/{run.config.epochs}", loss=loss / pictures, images_per_second=rate)
    return done


def _since(start: float) -> float:
    """Seconds since then, never 0: clocks may tick but 64 times a second."""
    return max(time.monotonic() - start, 1e-9)
