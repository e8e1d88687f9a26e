"""The training loop: epochs of steps, with an evaluation and a checkpoint after each epoch."""

import signal
from collections.abc import Callable, Mapping
from functools import partial

from jaxcnn.config import ModelConfig
from jaxcnn.distributed import place_state
from jaxcnn.history import has_steps_left, lacks_evaluation, read_history
from jaxcnn.ops.precision import measured_here
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.run.cost import describe_expected, expected_seconds
from jaxcnn.run.metrics_log import MetricsLog, TrainRecord, ValidationRecord, is_stalled
from jaxcnn.run.progress import TrainProgress, open_progress
from jaxcnn.run_epoch import train_epoch
from jaxcnn.signals import stop_on_signal
from jaxcnn.state import TrainState
from jaxcnn.stopping import UNREAD, decide_to_stop
from jaxcnn.training_run import Run
from jaxcnn.validation import evaluate_variables


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
                decide = partial(decide_to_stop, stop, log)
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


def _seconds_to_go(run: Run, record: TrainRecord, pace: float) -> float:
    """Estimates the time of the steps after a record, given the seconds of a picture at its resolution."""
    config, steps_per_epoch = run.config, run.steps_per_epoch
    side = config.resolution((record.step - 1) // steps_per_epoch)
    return expected_seconds(
        config, pace * config.batch_size, side=side, step=record.step, steps_per_epoch=steps_per_epoch
    )


def _print_precision(config: ModelConfig, progress: TrainProgress) -> None:
    """Prints which precision `auto` means here, if it was a matter of measurement."""
    measured = measured_here() if config.precision == "auto" else None
    if measured is not None:
        progress.print(str(measured))
