"""A whole training run in three calls: `begin` opens it, `fit` takes its steps, `conclude` measures and exports it."""

import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import jax

import export
from jaxcnn.calibration import Calibration, calibrate, keep_every, write_calibration
from jaxcnn.classifier import load
from jaxcnn.config import Config
from jaxcnn.cores import count_cores
from jaxcnn.data import check_outside_pictures
from jaxcnn.disk import check_room
from jaxcnn.distributed import place_state
from jaxcnn.errors import UserError
from jaxcnn.evaluation import compute_logits, measure, with_mirror_image
from jaxcnn.evaluation_record import describe_measured, predictions_path, write_evaluation, write_predictions
from jaxcnn.fitted_head import start_with_fitted_head
from jaxcnn.history import has_steps_left, lacks_evaluation, read_history
from jaxcnn.linear_head import LinearHead
from jaxcnn.loop import fit
from jaxcnn.metrics import Evaluation
from jaxcnn.preparation import (
    check_same_settings,
    find_overlap,
    initialise,
    join_processes,
    prepare_run,
    print_start,
)
from jaxcnn.processes import is_leader, lead, share
from jaxcnn.run.checkpoint import Checkpoints, load_model, open_checkpoints
from jaxcnn.run.earlier_trainings import record_earlier
from jaxcnn.run.live_report import LiveReport
from jaxcnn.run.metrics_log import (
    EndRecord,
    HeadRecord,
    MetricsLog,
    Record,
    StartRecord,
    ValidationRecord,
    append_end,
    is_stalled,
    open_log,
)
from jaxcnn.run.recorded import is_finished
from jaxcnn.run.sessions import record_session
from jaxcnn.run.shared_workdir import copied_to, locked_by_leader
from jaxcnn.run.tracking import open_tracking
from jaxcnn.run.workdir import Workdir
from jaxcnn.run_step import augment_some
from jaxcnn.state import TrainState
from jaxcnn.step import exact_eval_step
from jaxcnn.terminal import console, stage, warn
from jaxcnn.training_run import Run, empty_state, start_order
from jaxcnn.validation import evaluate_variables
from jaxcnn.weights import Weights

SHOWN = 16
"""Number of augmented pictures that TensorBoard shows."""
MOST_LOGITS = 2**28
"""Most logits that are held in memory at once to calibrate with, 1 GB: 12,290 pictures of 21,841 classes."""
FEW = 32
"""Pictures that every device has room for, without the memory of a training step."""


class Start(NamedTuple):
    """Where a session of a run starts, and what it writes to.

    Attributes:
      run: settings, data, network and optimizer.
      state: before the first step: initial, or restored from the last checkpoint.
      checkpoints: the run's checkpoints.
      log: the run's `metrics.jsonl` and TensorBoard events.
    """

    run: Run
    state: TrainState
    checkpoints: Checkpoints
    log: MetricsLog


def train(
    config: Config,
    workdir: str | Path,
    *,
    note: str | None = None,
    bucket: str | None = None,
    echo: IO[str] | None = None,
) -> Evaluation | None:
    """Trains a classifier, or resumes the run in `workdir`, and exports its best checkpoint.

    SIGINT, SIGTERM and SIGHUP stop the run after the step in progress, or a batch of an evaluation, with its state
    saved. The same call resumes it.

    Args:
      config: the settings.
      workdir: the run's folder; created if it does not exist.
      note: text to keep in the workdir, in place of its note if it has one.
      bucket: address of a copy of the workdir, see `begin`.
      echo: where the records of the run are written as well as to its log, such as standard output.

    Returns:
      The evaluation of the best checkpoint on the validation pictures; None if a signal stopped the run before its end,
      or an `echo` that cannot be written. In a run of several processes, the first one returns it, and the others
      return None.

    Raises:
      UserError: the settings, the data or the workdir cannot be trained with, or training diverged.
    """
    with begin(config, workdir, note=note, bucket=bucket, echo=echo) as (run, state, checkpoints, log):
        finished = fit(run, state, checkpoints=checkpoints, log=log)
        return conclude(run, workdir) if finished else None


@contextmanager
def begin(
    config: Config,
    workdir: str | Path,
    *,
    note: str | None = None,
    bucket: str | None = None,
    echo: IO[str] | None = None,
) -> Iterator[Start]:
    """Opens a run for training: loads its data, locks its folder, and restores or initialises its state.

    Everything that the run depends on is checked before, and recorded in the workdir. The folder stays locked until
    the context ends. If this is one of several processes, it joins the others first; only the leader writes.

    Args:
      config: the settings.
      workdir: the run's folder; created if it does not exist. A run in it is resumed.
      note: text to keep in the workdir, in place of its note if it has one.
      bucket: address of a copy of the workdir, such as `s3://BUCKET/FOLDER`. A workdir without a run is fetched from
        there; what is new is sent after every checkpoint and at the end.
      echo: where the records of the run are written as well as to its log.

    Raises:
      UserError: the settings or the data do not fit the run in the workdir, leak training pictures of the initial
        weights into validation, or cannot be trained with; another process trains in the workdir; or the bucket cannot
        be read.
    """
    join_processes(config)
    trackers, config = config.log, config.recorded()
    check_same_settings(config, bucket)
    folder = Workdir(Path(workdir))
    check_outside_pictures(folder.path, config.data.source, option="workdir")
    with locked_by_leader(folder), copied_to(bucket, folder) as listeners:
        run, classes, fingerprint, findings = prepare_run(config, folder)
        config, cores = run.config, _count_all_cores()
        with (
            open_checkpoints(folder.checkpoints, listeners) as checkpoints,
            open_log(folder.path, writes=is_leader(), echo=echo) as log,
        ):
            is_new = checkpoints.last_step is None
            start_order(run, checkpoints.last_step or 0)
            with stage("preparing the network and its state"):
                weights, state = _restore(run, checkpoints)
            step = int(state.step)
            history = read_history(log, step)
            goes_on = is_new or lacks_evaluation(run, checkpoints, step=step) or has_steps_left(run, history, step=step)

            def record() -> None:
                if goes_on:
                    _check_room(state, folder)
                    record_session(folder, config, classes, step=step, cores=cores)
                else:
                    _check_ended(run, folder, history, step=step)
                folder.record_pictures(fingerprint())
                if note is not None:
                    folder.write_note(note)
                _record_lineage(run, folder, weights)
                print_start(run, folder, step=step, weights=weights, goes_on=goes_on)
                for finding in findings:
                    warn(finding)

            lead(record)
            with open_tracking(trackers, folder, config, writes=is_leader()) as track:
                log.listeners += [LiveReport(folder.path, run.dataset).note, track, partial(_draw_augmented, run, log)]
                if goes_on:
                    state = _start_session(run, weights, state, checkpoints, log)
                yield Start(run, state, checkpoints, log)
            # All wait for what the leader has sent: a process that ends alone ends the others after some seconds.
            lead(lambda: None)


def _count_all_cores() -> int:
    """Counts the cores of all machines; processes on one machine share its cores."""
    return sum(dict(share((platform.node(), count_cores()))).values())


def _draw_augmented(run: Run, log: MetricsLog, record: Record) -> None:
    """Shows in TensorBoard what the first step of a run made of some pictures, after the first epoch.

    It has to be compiled, which at the start would delay the first step.
    """
    if isinstance(record, ValidationRecord) and record.step == run.steps_per_epoch:
        with stage("augmenting some pictures to show them"):
            log.write_pictures(augment_some(run, SHOWN), step=0)


def conclude(run: Run, workdir: str | Path) -> Evaluation | None:
    """Calibrates, evaluates and exports the best checkpoint, and writes the evaluation, the report and `model.onnx`.

    The run is finished then, whether or not it has taken all of its steps, until it is begun again and goes on. In a
    run of several processes, the first one does so, on one of its devices, and the others wait.

    Returns:
      The evaluation on the validation pictures; None in all processes but the first.

    Raises:
      UserError: the workdir has no checkpoint yet, or the model cannot be exported.
    """
    results: list[Evaluation] = []
    try:
        lead(lambda: results.append(_conclude(run, workdir)))
    except (KeyboardInterrupt, SystemExit):  # A signal.
        console.print("the run is trained and saved; run again to evaluate and export it", soft_wrap=True)
        raise
    return results[0] if results else None


def _conclude(run: Run, workdir: str | Path) -> Evaluation:
    # Their libraries are not needed before.
    from jaxcnn.run.report import write_report
    from jaxcnn.run.tensorboard import write_summary

    folder = Workdir(Path(workdir))
    with stage("calibrating the best checkpoint"):
        calibration = _calibrate(run, folder)
    # As a user of the workdir measures it: computed in float32, with calibrated logits.
    classifier, held_out = load(folder.path), run.dataset.validation
    measure_split = partial(measure, classes=len(classifier.names), batch_size=_share_of_batch(run))
    with stage("evaluating the best checkpoint"):
        evaluation = measure_split(classifier.logits, held_out)
        # Mirroring may change the class of a picture, such as a digit's; the settings then leave it out of training.
        flipped = measure_split(with_mirror_image(classifier.logits), held_out) if run.config.mirrors else None
    about = describe_measured(classifier, dataset=run.dataset, split="validation")
    write_evaluation(evaluation, folder.evaluation, names=classifier.names, about=about, flipped=flipped)
    write_predictions(evaluation, predictions_path(folder.evaluation), names=classifier.names, splits=[held_out])
    with stage("writing the report"):
        write_report(folder.path, evaluation, run.dataset, calibration=calibration)
    try:
        with stage("exporting and verifying the model"):
            export.export_workdir(folder.path, pictures=held_out.shown[:7])
    except (export.UnsupportedError, export.VerificationError) as error:
        raise UserError(f"{workdir} is trained and saved, but not exported: {error}") from error
    write_summary(folder.path, run.config, evaluation, step=calibration.step)
    if not is_finished(folder):  # A loop of the user's own may end before the last epoch.
        append_end(folder.metrics, EndRecord(step=calibration.step, epoch=calibration.step / run.steps_per_epoch))
    return evaluation


def _restore(run: Run, checkpoints: Checkpoints) -> tuple[Weights | None, TrainState]:
    """Restores the last checkpoint, or initialises the state of a new run.

    Returns:
      The initial weights of a new run that has some, and the state.

    Raises:
      UserError: the checkpoint or the weights cannot be read or do not fit the network, or the weights were trained on
        pictures that this run holds out.
    """
    if checkpoints.last_step is not None:
        return None, checkpoints.restore(empty_state(run))
    return initialise(run)


def _check_room(state: TrainState, folder: Workdir) -> None:
    """Raises a `UserError` if the disk of the workdir has no room for one more checkpoint."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    # Orbax compresses checkpoints a little.
    check_room(
        folder.path,
        round(0.8 * sum(leaf.nbytes for leaf in leaves)),
        what="the parameters and the optimizer's state of a checkpoint",
        advice="make room or give another --workdir",
    )


def _record_lineage(run: Run, folder: Workdir, weights: Weights | None) -> None:
    """Records the trainings behind the initial weights and behind the teachers, as far as there are any."""
    if weights is not None:
        record_earlier(weights.trainings, folder.earlier_trainings, warning=find_overlap(run, weights))
    if run.teachers is not None:
        record_earlier(run.teachers.trainings, folder.teachers)


def _start_session(
    run: Run, weights: Weights | None, state: TrainState, checkpoints: Checkpoints, log: MetricsLog
) -> TrainState:
    """Fits the head of a new run with initial weights if its settings say so, and records that training starts."""
    if weights is not None and (run.config.fit_head or run.config.is_frozen):
        state = _fit_head(run, state, checkpoints, log)
    step = int(state.step)
    log.write(StartRecord(step=step, epoch=step / run.steps_per_epoch))
    return state


def _fit_head(run: Run, state: TrainState, checkpoints: Checkpoints, log: MetricsLog) -> TrainState:
    """Fits the head of a new run to the features of its initial weights, and saves the state as that of step 0.

    Raises:
      UserError: the network has no linear head, or the disk is full.
    """
    # What it was chosen by.
    started = time.monotonic()
    state, head = start_with_fitted_head(run, state)
    state = place_state(state, run.mesh)
    seconds = time.monotonic() - started
    log.write(
        HeadRecord(
            step=0,
            epoch=0.0,
            standardised=float(head.standardised),
            strength=head.strength,
            loss=head.loss,
            top1=head.top1,
            seconds=seconds,
        )
    )
    # What it is worth.
    with stage("evaluating"):
        scores = evaluate_variables(run, state.evaluated).scalars()
    log.write(ValidationRecord(step=0, epoch=0.0, **scores))
    log.sync()
    checkpoints.save(state, metrics=scores)
    _print_fitted(head, scores, seconds=seconds)
    return state


def _print_fitted(head: LinearHead, scores: Mapping[str, float], *, seconds: float) -> None:
    """Prints how good a fitted classifier is, by cross-validation and on the validation pictures."""
    left_out = (
        "nothing to cross-validate with"
        if head.top1 is None
        else f"top-1 {head.top1:.4f} in cross-validation on training pictures"
    )
    console.print(
        f"classifier fitted in {seconds:.1f} s: {left_out}; validation top-1 {scores['top1']:.4f}, "
        f"loss {scores['loss']:.4f}",
        soft_wrap=True,
    )


def _check_ended(run: Run, workdir: Workdir, history: Sequence[float], *, step: int) -> None:
    """Checks the settings of a run without steps left, and records `early_stopping` if it is new and ends the run.

    Other settings, and the machine, are not recorded: no step is taken with them.

    Raises:
      UserError: the settings ask for fewer steps than were taken, or for changes that would have no effect.
    """
    if step > run.total_steps:
        taken = step / run.steps_per_epoch
        raise UserError(
            f"epochs is {run.config.epochs}, but the run in {workdir.path} has taken {taken:.4g} already; give at "
            f"least {math.ceil(taken)}, or another --workdir"
        )
    has_all = step == run.total_steps
    workdir.check_unchanged(run.config, advice="more --epochs" if has_all else "a higher --early_stopping")
    if not has_all and not is_stalled(history, workdir.read_config().early_stopping):
        workdir.record_early_stopping(run.config.early_stopping)


def _calibrate(run: Run, workdir: Workdir) -> Calibration:
    """Fits the temperature of the best checkpoint to the validation pictures, and records it."""
    best, held_out = load_model(workdir.path), run.dataset.validation
    logits = partial(exact_eval_step, best.variables, model=best.model)
    # With very many classes, every second picture is enough, or every third and so on.
    every = max(-(-len(held_out) * len(run.dataset.names) // MOST_LOGITS), 1)
    batches = compute_logits(logits, held_out, batch_size=_share_of_batch(run))
    found = keep_every((values[batch.mask] for values, batch in batches), every)
    calibration = calibrate(found, held_out.labels[::every], step=best.step)
    write_calibration(calibration, workdir.calibration)
    return calibration


def _share_of_batch(run: Run) -> int:
    """Returns how many pictures one device has room for: as many as it has of a batch in training, or `FEW`."""
    size = run.config.batch_size
    return min(size, max(size // jax.device_count(), FEW))
