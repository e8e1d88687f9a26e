"""The training loop: epochs of steps, with an evaluation and a checkpoint after each epoch."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int64, Key, UInt8

from jaxcnn import data
from jaxcnn.accumulation import check_parts
from jaxcnn.augment import augment
from jaxcnn.config import AugmentConfig, Config, ModelConfig
from jaxcnn.data.batches import begin_order
from jaxcnn.distributed import (
    check_devices,
    fetch_rows,
    fetch_state,
    local_rows,
    make_mesh,
    place_batch,
    place_state,
    shard_batch,
)
from jaxcnn.divergence import first_not_finite
from jaxcnn.errors import UserError
from jaxcnn.evaluation import measure
from jaxcnn.memory import describe_shortage, needed_bytes
from jaxcnn.metrics import Evaluation
from jaxcnn.models import registry
from jaxcnn.ops.precision import measured_here
from jaxcnn.optim import make_optimizer, make_schedule
from jaxcnn.processes import Wishes, lead, propose
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.run.cost import describe_expected, expected_seconds
from jaxcnn.run.metrics_log import MetricsLog, StartRecord, TrainRecord, ValidationRecord, is_stalled
from jaxcnn.run.progress import TrainProgress, open_progress
from jaxcnn.signals import StopRequest, stop_on_signal
from jaxcnn.state import (
    TrainState,
    Variables,
    complete,
    create_state,
    describe_variables,
    first_state,
    zero_state,
)
from jaxcnn.step import StepMetrics, eval_step, step_keys, train_step
from jaxcnn.teachers import Teachers, read_teachers
from jaxcnn.terminal import warn
from jaxcnn.weights import Weights

UNREAD: signal.Signals = getattr(signal, "SIGPIPE", signal.SIGABRT)
"""Stands for the signal that asks to stop if the echo of the log cannot be written; Windows has no SIGPIPE."""
LOG_SECONDS = 2.0
"""Time between two train records: long enough that waiting for the metrics does not slow the device down."""


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to the last.

    Attributes:
      config: the settings.
      dataset: training and validation pictures.
      model: the network.
      optimizer: the optimizer, with the schedule in it.
      schedule: learning rate by step, counted from 0.
      steps_per_epoch: batches in an epoch.
      teachers: classifiers whose predictions are learned; None without.
    """

    config: Config
    dataset: data.Dataset
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps_per_epoch: int
    teachers: Teachers | None = None

    @property
    def key(self) -> Key[Array, ""]:
        """The key that all random numbers of the run are derived from."""
        return jax.random.key(self.config.seed)

    @property
    def mesh(self) -> Mesh | None:
        """All devices of the run; None if there is only one."""
        return make_mesh(self.config.parallel.fsdp)

    @property
    def rows(self) -> Int64[np.ndarray, " rows"] | None:
        """Positions in each batch that this process reads and computes; None: all."""
        return None if jax.process_count() == 1 else local_rows(self.config.batch_size, self.mesh)

    def augmentation(self, epoch: int) -> AugmentConfig:
        """Returns what the step of an epoch does to the pictures, without crops that were taken as they were read."""
        config = self.config.augmentation(epoch)
        return config if self.dataset.train.crop_scale is None else dataclasses.replace(config, crop_scale=None)

    @property
    def epochs(self) -> int:
        """Epochs of the whole run; 0 if all but the head is frozen."""
        return 0 if self.config.is_frozen else self.config.epochs

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def prepare(config: Config, dataset: data.Dataset) -> Run:
    """Builds the network and the optimizer for the settings and the data.

    Raises:
      UserError: the data has fewer than two classes, the devices do not fit the batch size, or a teacher does not fit
        the data.
    """
    check_devices(config.batch_size, fsdp=config.parallel.fsdp)
    check_parts(config, classes=len(dataset.names), devices=jax.device_count())
    if len(dataset.names) < 2:
        raise UserError(f"{dataset.name} has only the class {dataset.names[0]!r}; a classifier needs two or more")
    steps_per_epoch = data.steps_per_epoch(dataset.train, batch_size=config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    model = _with_common_precision(config.model)
    return Run(
        config=config,
        dataset=dataset.cropped(config.augment.crop_scale),
        model=registry.build_here(model, classes=len(dataset.names)),
        optimizer=make_optimizer(config.optim, steps=total_steps),
        schedule=make_schedule(config.optim, steps=total_steps),
        steps_per_epoch=steps_per_epoch,
        teachers=read_teachers(dataclasses.replace(config, model=model), dataset),
    )


def _with_common_precision(config: ModelConfig) -> ModelConfig:
    """Returns the settings with the precision that the leader has resolved: `auto` may be a matter of measurement."""
    if jax.process_count() == 1:
        return config
    precision = lead(lambda: registry.resolve_precision(config.precision))
    return dataclasses.replace(config, precision="bfloat16" if precision == "bfloat16" else "float32")


def initial_state(run: Run, weights: Weights | None = None) -> TrainState:
    """The state before the first step, a pure function of the run and the initial weights.

    Args:
      run: the run.
      weights: initial weights; without them the parameters are random. Their head is used if the classes are the same.

    Raises:
      UserError: the weights do not fit the network.
    """
    config = run.config
    side, averaged = config.data.image_size, config.optim.ema_decay > 0
    if weights is None:
        return create_state(run.key, model=run.model, optimizer=run.optimizer, image_size=side, averaged=averaged)
    # A head for other classes or features, or in another order, is of no use. Nothing but such a head is initialised:
    # compiling the random numbers of a whole network may take longer than fitting the head.
    with_head = weights.has_head_for(config.model, run.dataset.names, run.dataset.wnids)
    filled = weights.fill(describe_variables(run.model, side), with_head=with_head)
    variables = complete(filled, run.key, model=run.model, image_size=side)
    return first_state(variables, optimizer=run.optimizer, averaged=averaged)


def empty_state(run: Run) -> TrainState:
    """A state of zeros, laid out as the run needs it, for a checkpoint to be restored into."""
    config = run.config
    zeros = zero_state(
        run.model,
        optimizer=run.optimizer,
        image_size=config.data.image_size,
        averaged=config.optim.ema_decay > 0,
    )
    state: TrainState = place_state(zeros, run.mesh)
    return state


def fit(run: Run, state: TrainState, *, checkpoints: Checkpoints, log: MetricsLog) -> bool:
    """Takes the remaining steps of a run. Evaluates and saves the state after every epoch.

    The first SIGINT, SIGTERM or SIGHUP ends the training early, with the state saved; see `signals.stop_on_signal`. So
    does a reader of the log's echo who has gone.

    Args:
      run: the run.
      state: where to continue; consumed.
      checkpoints: where states are saved.
      log: where metrics are recorded.

    Returns:
      Whether the run is complete; False if it was stopped.

    Raises:
      UserError: training diverged, or the disk is full.
    """
    state = place_state(state, run.mesh)
    first_step, epochs, patience = int(state.step), run.epochs, run.config.early_stopping
    is_unmeasured = lacks_evaluation(run, checkpoints, step=first_step)
    # An epoch ends with its evaluation.
    ended = (first_step - is_unmeasured) // run.steps_per_epoch
    history = read_history(log, ended * run.steps_per_epoch)
    if not is_unmeasured and not has_steps_left(run, history, step=first_step):
        return True
    log.write(StartRecord(step=first_step, epoch=first_step / run.steps_per_epoch))
    with (
        stop_on_signal() as stop,
        open_progress(
            total_steps=run.total_steps,
            first_step=first_step,
            epochs=epochs,
            expect=partial(describe_expected, run.config, first_step=first_step, steps_per_epoch=run.steps_per_epoch),
            to_go=partial(_seconds_to_go, run),
        ) as progress,
    ):
        _print_precision(run.config.model, progress)
        for epoch in range(ended, epochs):
            result = train_epoch(
                run, state, epoch=epoch, checkpoints=checkpoints, log=log, progress=progress, stop=stop
            )
            state, stopped_by = result.state, result.stopped_by
            # Only whole epochs are evaluated.
            if stopped_by is None:
                decide = partial(_decide_to_stop, stop, log)
                with progress.paused():
                    scores, stopped_by = _end_epoch(
                        run, state, epoch=epoch, checkpoints=checkpoints, log=log, progress=progress, decide=decide
                    )
                if scores is not None:
                    history.append(scores["top1"])
                    progress.print(
                        _describe_epoch(scores, epoch=epoch + 1, epochs=epochs, rate=result.images_per_second)
                    )
            if stopped_by is not None:
                reason = "as its records cannot be printed" if stopped_by is UNREAD else f"by {stopped_by.name}"
                progress.print(f"stopped {reason} and saved at step {int(state.step):,}; run again to resume")
                return False
            if epoch + 1 < epochs and is_stalled(history, patience):
                progress.print(
                    f"stopped early: no better validation top-1 in the last {patience} of {epoch + 1} epochs"
                )
                return True
    return True


class _StoppedError(Exception):
    """A signal asks to stop during an evaluation."""

    def __init__(self, number: signal.Signals):
        super().__init__(number)
        self.signal = number


def _end_epoch(
    run: Run,
    state: TrainState,
    *,
    epoch: int,
    checkpoints: Checkpoints,
    log: MetricsLog,
    progress: TrainProgress,
    decide: Callable[[], signal.Signals | None],
) -> tuple[dict[str, float] | None, signal.Signals | None]:
    """Evaluates, records and saves the state after an epoch. Asked to stop in between, it only saves it.

    Returns:
      The scores of the epoch, None if its evaluation was stopped; and the signal that asks to stop.
    """
    step = int(state.step)
    # The evaluation of a resumed run was stopped.
    is_saved = checkpoints.last_step == step

    def stop_if_asked() -> None:
        if (asked_by := decide()) is not None:
            raise _StoppedError(asked_by)

    try:
        with progress.doing("evaluating"):
            scores = evaluate_variables(run, state.evaluated, before_batch=stop_if_asked).scalars()
    except _StoppedError as stopped:
        if not is_saved:
            log.sync()
            checkpoints.save(state)
        return None, stopped.signal
    log.write(ValidationRecord(step=step, epoch=epoch + 1.0, **scores))
    with progress.doing("saving"):
        log.sync()
        if is_saved:
            checkpoints.add_metrics(step, scores)
        else:
            checkpoints.save(state, metrics=scores)
    return scores, decide()


def _describe_epoch(scores: Mapping[str, float], *, epoch: int, epochs: int, rate: float) -> str:
    found = f"epoch {epoch}/{epochs}: validation top-1 {scores['top1']:.4f}, loss {scores['loss']:.4f}"
    # A session that starts with an evaluation has taken no step of that epoch.
    return f"{found}; {rate:,.0f} images/s" if rate else found


def lacks_evaluation(run: Run, checkpoints: Checkpoints, *, step: int) -> bool:
    """Returns whether a run was stopped while it evaluated the epoch that ends with a step, its last one."""
    is_end = 0 < step <= run.total_steps and step % run.steps_per_epoch == 0
    return is_end and checkpoints.lacks_metrics(step)


def _seconds_to_go(run: Run, record: TrainRecord, pace: float) -> float:
    """Estimates the time of the steps after a record, given the seconds of a picture at its resolution."""
    config, steps_per_epoch = run.config, run.steps_per_epoch
    side = config.resolution((record.step - 1) // steps_per_epoch)
    return expected_seconds(
        config, pace * config.batch_size, side=side, step=record.step, steps_per_epoch=steps_per_epoch
    )


def read_history(log: MetricsLog, step: int) -> list[float]:
    """Returns the validation top-1 accuracies of a run up to a step, in every process as the leader has logged them."""
    return lead(lambda: [record.top1 for record in log.read().validation if record.step <= step])


def has_steps_left(run: Run, history: Sequence[float], *, step: int) -> bool:
    """Returns whether a run goes on after a step: it has neither taken all of its steps nor ended early.

    Args:
      run: the run.
      history: validation top-1 accuracies up to the step, from `read_history`.
      step: steps taken so far.
    """
    return step < run.total_steps and not is_stalled(history, run.config.early_stopping)


def _print_precision(config: ModelConfig, progress: TrainProgress) -> None:
    """Prints which precision `auto` means here, if it was a matter of measurement."""
    measured = measured_here() if config.precision == "auto" else None
    if measured is not None:
        progress.print(str(measured))


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
                started, stopped_by = started + saved - pause, _signal_of(decided)
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


def start_order(run: Run, step: int) -> None:
    """Starts to shuffle the pictures for the epoch of a step, which goes on while the state of the run is made."""
    if step < run.total_steps and not run.config.balance:
        epoch = step // run.steps_per_epoch
        begin_order(seed=run.config.seed, epoch=epoch, count=len(run.dataset.train))


def batches_from(
    run: Run,
    step: int,
    *,
    rows: Int64[np.ndarray, " rows"] | None,
    place: Callable[[data.Batch], data.Batch] = lambda batch: batch,
) -> Generator[data.Batch]:
    """Yields the batches of a run; see `train_batches`.

    Args:
      run: the run.
      step: the step of the first batch, counted from 0.
      rows: positions in each batch that are read; None: all.
      place: what else the thread that reads does with each batch.
    """
    config = run.config
    return data.train_batches(
        run.dataset.train,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=step,
        balanced=config.balance,
        rows=rows,
        place=place,
    )


def _wishes(config: Config, stop: StopRequest, log: MetricsLog, *, logged: float, saved: float) -> Wishes:
    """What this process would do now, given when metrics were last recorded and the state was last saved."""
    now = time.monotonic()
    return Wishes(
        stop=_wish_to_stop(stop, log),
        save=now - saved >= 60 * config.checkpoint_minutes,
        log=now - logged >= LOG_SECONDS,
    )


def _wish_to_stop(stop: StopRequest, log: MetricsLog) -> int:
    """Returns the number of the signal that asks this process to stop; 0 without."""
    return stop.signal or (UNREAD if log.is_unread else 0)


def _decide_to_stop(stop: StopRequest, log: MetricsLog) -> signal.Signals | None:
    """Returns the signal that asks one of the processes to stop, in all of them."""
    return _signal_of(propose(lambda: Wishes(stop=_wish_to_stop(stop, log), save=False, log=False))())


def _signal_of(decided: Wishes) -> signal.Signals | None:
    return signal.Signals(decided.stop) if decided.stop else None


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
    classes, resolution, shown = len(run.dataset.names), config.resolution(epoch), run.dataset.train.side
    taught = None
    if run.teachers is not None:
        changes = {"config": run.augmentation(epoch), "classes": classes, "resolution": resolution, "shown": shown}
        taught = run.teachers.predict(state.step, images, labels, run.key, **changes)
    return (state, images, labels, run.key, taught), {
        "model": run.model,
        "optimizer": run.optimizer,
        "augment_config": run.augmentation(epoch),
        "classes": classes,
        "resolution": resolution,
        "label_smoothing": config.label_smoothing,
        "average_decay": config.optim.ema_decay,
        "shown": shown,
        "mesh": run.mesh,
        "accumulate": config.parallel.accumulate,
        "remat": config.parallel.remat,
        "distill_config": config.distill,
    }


def evaluate_variables(
    run: Run, variables: Variables, *, before_batch: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluates variables on all validation pictures, in the precision of the run and without calibration.

    Every process computes its share, and has the result.

    Args:
      run: the run.
      variables: parameters and batch statistics.
      before_batch: is called before each batch; its errors end the evaluation.
    """

    def logits(images: UInt8[np.ndarray, "batch side side 3"]) -> Float32[np.ndarray, "batch classes"]:
        before_batch()
        return fetch_rows(eval_step(variables, shard_batch(images, run.mesh), model=run.model, mesh=run.mesh))

    return measure(
        logits,
        run.dataset.validation,
        classes=len(run.dataset.names),
        batch_size=run.config.batch_size,
        rows=run.rows,
    )


def _augment_in(run: Run, epoch: int) -> Callable[..., tuple[Float[Array, "batch side side 3"], Array]]:
    """Returns `augment` with the settings of an epoch: a function of a key, pictures and labels."""
    return partial(
        augment,
        config=run.augmentation(epoch),
        classes=len(run.dataset.names),
        resolution=run.config.resolution(epoch),
        shown=run.dataset.train.side,
    )


def augment_some(run: Run, count: int) -> UInt8[np.ndarray, "count side side 3"]:
    """Returns the first pictures of the first batch, or all of a smaller one, augmented as at the start of a run."""
    rows = np.arange(min(count, run.config.batch_size))
    with contextlib.closing(batches_from(run, 0, rows=rows)) as batches:
        batch = next(batches)
    key, _ = step_keys(run.key, jnp.int32(0))
    augmented, _ = jax.jit(_augment_in(run, 0))(key, jnp.asarray(batch.images), jnp.asarray(batch.labels))
    return np.asarray(augmented).round().astype(np.uint8)


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
    inputs, _ = _augment_in(run, epoch)(augment_key, jnp.asarray(batch.images), jnp.asarray(batch.labels))
    place = first_not_finite(variables, inputs, dropout_key, model=run.model)
    raise UserError(
        f"training diverged: in step {step + 1} (epoch {step / run.steps_per_epoch:.2f}, learning rate "
        f"{float(run.schedule(step)):.3g}) {place} is the first value that is not finite; earlier "
        "checkpoints are whole. Lower --optim.learning_rate or set --optim.clip_norm, and give another --workdir"
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
