"""The training steps of an epoch, with their records and the checkpoints between them."""

import contextlib
import signal
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax

from jaxcnn import data
from jaxcnn.config import Config
from jaxcnn.distributed import place_batch
from jaxcnn.divergence import check_finite
from jaxcnn.memory import describe_shortage
from jaxcnn.processes import Wishes, propose
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.run.metrics_log import MetricsLog, TrainRecord
from jaxcnn.run.progress import TrainProgress
from jaxcnn.run_step import compile_step, take_step
from jaxcnn.signals import StopRequest
from jaxcnn.state import TrainState
from jaxcnn.step import StepMetrics
from jaxcnn.stopping import signal_of, wish_to_stop
from jaxcnn.terminal import warn
from jaxcnn.training_run import Run, batches_from

LOG_SECONDS = 2.0
"""Time between two train records: long enough that waiting for the metrics does not slow the device down."""


class EpochResult(NamedTuple):
    """The outcome of the training steps of an epoch.

    Attributes:
      state: the state after the last step taken.
      stopped_by: the signal that stopped the epoch before its last step, with the state saved; None if the epoch is
        complete.
      images_per_second: training pictures over time, saves not counted.
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
    """Takes the remaining steps of an epoch, or saves the state and returns early when asked to stop.

    Args:
      run: the run.
      state: a state within the epoch; consumed.
      epoch: the epoch, counted from 0.
      checkpoints: where states are saved, every `checkpoint_minutes` and when stopped.
      log: where metrics are recorded, every `LOG_SECONDS`, before a save and after the last step.
      progress: where they are shown.
      stop: the request to stop, looked at after every step.

    Raises:
      UserError: training diverged, or the disk is full.
    """
    # A resumed run starts within the epoch, at the batch where it was stopped.
    config, first, end = run.config, int(state.step), (epoch + 1) * run.steps_per_epoch
    batches = batches_from(run, first, rows=run.rows, place=partial(place_batch, mesh=run.mesh))
    window: list[StepMetrics] = []
    stopped_by: signal.Signals | None = None
    started = logged = saved = time.monotonic()
    with contextlib.closing(batches):
        for step, batch in zip(range(first + 1, end + 1), batches, strict=False):
            decide = propose(partial(_wishes, config, stop, log, logged=logged, saved=saved))
            is_first = step == first + 1
            if is_first:
                _compile_first(run, state, batch, epoch=epoch, progress=progress)
                started = logged = time.monotonic()  # The rate of the steps is that without the compilation.
            with progress.doing("taking the first step", first="step") if is_first else contextlib.nullcontext():
                state, metrics = take_step(run, state, batch, epoch=epoch)
                if is_first:
                    metrics.loss.block_until_ready()
            _limit_queue(metrics, window)
            progress.count_step()
            # The metrics stay on the device until they are logged: reading them would wait for it.
            window.append(metrics)
            decided = decide()
            saves = bool(decided.stop or decided.save)
            if decided.log or saves or step == end:
                logged = _log_window(run, state, window, since=logged, log=log, progress=progress)
                window = []
            # After the last step of the epoch `fit` saves the state, with its metrics.
            if step < end and saves:
                pause = time.monotonic()
                with progress.doing("saving"):
                    log.sync()
                    checkpoints.save(state)
                # No rate counts the time of the save.
                saved = logged = time.monotonic()
                started, stopped_by = started + saved - pause, signal_of(decided)
                if stopped_by is not None:
                    break
    pictures = (int(state.step) - first) * config.batch_size
    return EpochResult(state, stopped_by, images_per_second=pictures / _seconds_since(started))


def _compile_first(run: Run, state: TrainState, batch: data.Batch, *, epoch: int, progress: TrainProgress) -> None:
    """Compiles the step of an epoch, unless an earlier epoch has, and warns if it needs more memory than is free."""
    side, augmentation = run.config.resolution(epoch), run.config.augmentation(epoch)
    with progress.doing(f"compiling the step for {side}x{side} pixels", first=(side, augmentation)) as is_first:
        needed = compile_step(run, state, batch, epoch=epoch) if is_first else 0
    if shortage := describe_shortage(needed, f"a step of {len(batch.labels)} pictures of {side}x{side} pixels"):
        warn(shortage)


def _wishes(config: Config, stop: StopRequest, log: MetricsLog, *, logged: float, saved: float) -> Wishes:
    """What this process would do now, given when metrics were last recorded and the state was last saved."""
    now = time.monotonic()
    return Wishes(
        stop=wish_to_stop(stop, log),
        save=now - saved >= 60 * config.checkpoint_minutes,
        log=now - logged >= LOG_SECONDS,
    )


def _limit_queue(metrics: StepMetrics, earlier: Sequence[StepMetrics]) -> None:
    """Keeps the host at most one step ahead of the device: a longer queue would only hold batches in memory.

    On a CPU it waits for the step itself. One queued step would already hold its feature maps, which can be gigabytes.
    """
    if jax.default_backend() == "cpu":
        metrics.loss.block_until_ready()
    elif earlier:
        earlier[-1].loss.block_until_ready()


def _log_window(
    run: Run,
    state: TrainState,
    window: Sequence[StepMetrics],
    *,
    since: float,
    log: MetricsLog,
    progress: TrainProgress,
) -> float:
    """Records and shows the metrics of some steps.

    Args:
      run: the run.
      state: the state after the steps.
      window: the metrics of the steps, at least one.
      since: the time before the first of them.
      log: where they are recorded.
      progress: where they are shown.

    Returns:
      The time at which the device had computed them.
    """
    # Wait for the device before the clock is read.
    loss, correct, pictures = (float(sum(values)) for values in zip(*jax.device_get(window), strict=True))
    done, seconds = time.monotonic(), _seconds_since(since)
    check_finite(run, state)
    step = int(state.step)
    record = TrainRecord(
        step=step,
        epoch=step / run.steps_per_epoch,
        loss=loss / pictures,
        top1=correct / pictures,
        learning_rate=float(run.schedule(step - 1)),
        resolution=run.config.resolution((step - 1) // run.steps_per_epoch),
        images_per_second=pictures / seconds,
    )
    log.write(record)
    progress.update(record)
    return done


def _seconds_since(start: float) -> float:
    """Seconds since a time of `time.monotonic`, never 0: some clocks tick only 64 times a second."""
    return max(time.monotonic() - start, 1e-9)
