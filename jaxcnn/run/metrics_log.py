"""The log of a run: records of its metrics, written to `metrics.jsonl` and TensorBoard event files, and read back.

Each line of `metrics.jsonl` is a JSON object: the `kind` of the record, and its fields by name.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from jaxcnn.disk import describe, remedy, sync
from jaxcnn.errors import UserError
from jaxcnn.typed_json import decode


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all records have.

    Attributes:
      step: steps taken so far.
      epoch: epochs so far, with a fraction.
      time: seconds since 1970.
    """

    kind: ClassVar[str]

    step: int
    epoch: float
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class StartRecord(Record):
    """The start of a session. Records of later steps that come before it are void: the steps are taken again."""

    kind = "start"


@dataclass(frozen=True, kw_only=True)
class EndRecord(Record):
    """The end of a run before its last epoch, with the checkpoint of this step as its result. Later records void it."""

    kind = "end"


@dataclass(frozen=True, kw_only=True)
class TrainRecord(Record):
    """Metrics of the training steps since the last record.

    Attributes:
      loss: mean loss on the augmented pictures.
      top1: top-1 accuracy on the augmented pictures.
      learning_rate: learning rate of the last step.
      resolution: side of the pictures in pixels; None in records of earlier versions.
      images_per_second: training pictures over time.
    """

    kind = "train"

    loss: float
    top1: float
    learning_rate: float
    resolution: int | None = None
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class ValidationRecord(Record):
    """Metrics on all validation pictures after an epoch; see `metrics.Evaluation`."""

    kind = "validation"

    loss: float
    top1: float
    top5: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class HeadRecord(Record):
    """The classifier that was fitted before the first step; see `linear_head.LinearHead`.

    Attributes:
      standardised: 1 if each feature was divided by its own deviation, 0 if all by a common one.
      strength: strength of its penalty.
      loss: mean cross-entropy of the training pictures that were left out, by cross-validation; None if there was
        nothing to cross-validate with.
      top1: their top-1 accuracy, or None.
      seconds: time that features and classifier took.
    """

    kind = "head"

    standardised: float
    strength: float
    loss: float | None = None
    top1: float | None = None
    seconds: float


_RECORDS = (StartRecord, TrainRecord, ValidationRecord, HeadRecord, EndRecord)
_KINDS: dict[str, type[Record]] = {record.kind: record for record in _RECORDS}
_COORDINATES = ("step", "epoch", "time")
"""Fields that say when; the others are metrics."""
_LATEST = 253402300800.0
"""Seconds from 1970 to the year 10,000, which no date can hold."""
_LARGEST = 2.0**128
"""Above the largest float32."""


class MetricsLog:
    """Appends records to the log of a run. Use `open_log`.

    Args:
      path: of the lines.
      lines: the file; None in a process that does not write.
      events: a `tensorboard.EventFile`, whose module takes long to import; None in a process that does not write.
      echo: where the lines are written, too.

    Attributes:
      listeners: are called with every record after it was written.
      is_unread: whether `echo` could not be written; it gets no more records.
    """

    def __init__(
        self,
        path: Path,
        lines: IO[str] | None,
        events: Any,
        *,
        echo: IO[str] | None = None,
    ):
        self._path = path
        self._echo = echo
        self.is_unread = False
        self.listeners: list[Callable[[Record], None]] = []
        self._lines = lines
        self._events = events

    def write(self, record: Record) -> None:
        """Appends a record, and flushes it; a process that does not write only checks it.

        Raises:
          UserError: a value is not finite, or the disk is full or cannot be written.
        """
        _check_finite(record)
        if self._lines is None or self._events is None:
            return
        with _write_errors(self._path.parent):
            line = json.dumps(_to_json(record), allow_nan=False) + "\n"
            self._lines.write(line)
            self._lines.flush()
            self._events.write_scalars(tagged(record), step=record.step, time=record.time)
        if self._echo is not None and not self.is_unread:
            self._write_echo(self._echo, line)
        for listener in self.listeners:
            listener(record)

    def _write_echo(self, echo: IO[str], line: str) -> None:
        try:
            echo.write(line)
            echo.flush()
        except OSError:  # Whoever trains decides what follows: an error now would lose the steps since the last save.
            self.is_unread = True

    def sync(self) -> None:
        """Waits until all records have reached the disk, as before the checkpoint that a resumed run goes on from.

        Raises:
          UserError: the disk is full or cannot be written.
        """
        if self._lines is not None:
            with _write_errors(self._path.parent):
                sync(self._path)
                sync(self._path.parent)

    def write_pictures(self, pictures: UInt8[np.ndarray, "count side side 3"], *, step: int) -> None:
        """Shows augmented pictures in TensorBoard; does nothing in a process that does not write.

        Raises:
          UserError: the disk is full or cannot be written.
        """
        if self._events is not None:
            with _write_errors(self._path.parent):
                self._events.write_pictures(pictures, step=step)

    def read(self) -> "RunLog":
        """Reads what has been written so far; see `read_log`."""
        return read_log(self._path)


def append_end(path: Path, record: EndRecord) -> None:
    """Appends the end of a run to its log, and waits until it has reached the disk.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    with _write_errors(path.parent):
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(_to_json(record)) + "\n")
        sync(path)


@contextmanager
def open_log(workdir: Path, *, writes: bool = True, echo: IO[str] | None = None) -> Iterator[MetricsLog]:
    """Opens the log of a run. Records are appended to an existing log.

    Args:
      workdir: the run's folder.
      writes: False: another process writes the log, and this one drops its records.
      echo: where the lines of the log are written, too.

    Raises:
      UserError: the workdir cannot be written.
    """
    path = workdir / "metrics.jsonl"
    if not writes:
        yield MetricsLog(path, None, None)
        return
    # tensorboardX takes long to import; commands that only read a log need not wait for it.
    from jaxcnn.run.tensorboard import EventFile

    with ExitStack() as stack:
        with _write_errors(workdir):
            is_torn = path.exists() and not path.read_bytes().endswith(b"\n")
            lines = path.open("a", encoding="utf-8")
            stack.callback(_close, lines)
            events = EventFile(workdir)
            stack.callback(_close, events)
        # A killed process can leave half a line; the next record starts a new one.
        if is_torn:
            lines.write("\n")
        yield MetricsLog(path, lines, events, echo=echo)


def _close(file: Any) -> None:
    """Closes a file; what cannot be written on a full disk, `MetricsLog.write` has raised already."""
    with suppress(OSError):
        file.close()


def rank(top1: float, step: int) -> tuple[float, int]:
    """Returns what orders the evaluated checkpoints of a run, the best last: validation top-1, on a tie the step."""
    return top1, step


def is_stalled(history: Sequence[float], patience: int | None) -> bool:
    """Returns whether none of the last `patience` scores is above all scores before them; None is never stalled."""
    if patience is None or len(history) <= patience:
        return False
    return max(history[-patience:]) <= max(history[:-patience])


@dataclass(frozen=True)
class RunLog:
    """The records of a run in the order of their steps.

    Attributes:
      train: one record every few seconds.
      validation: one record per epoch, and one before the first if a head was fitted.
      damaged: numbers of the lines that are not a whole record, counted from 1.
      heads: the head that was fitted before the first step, if there is one.
      ends: the last record if it ended the run.
    """

    train: list[TrainRecord]
    validation: list[ValidationRecord]
    damaged: list[int] = field(default_factory=list)
    heads: list[HeadRecord] = field(default_factory=list)
    ends: list[EndRecord] = field(default_factory=list)

    def validation_of(self, step: int) -> ValidationRecord | None:
        """The validation record of the checkpoint at a step; None if it was not evaluated."""
        return next((record for record in self.validation if record.step == step), None)

    @property
    def best(self) -> ValidationRecord | None:
        """The validation record of the best checkpoint, by `rank`; None before the first evaluation."""
        return max(self.validation, key=lambda record: rank(record.top1, record.step), default=None)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one epoch; None before the first is complete."""
        last = self.validation[-1] if self.validation else None
        return round(last.step / last.epoch) if last and last.epoch else None

    def seconds(self, batch_size: int, *, start: int = 0, end: int | None = None) -> float:
        """Time spent in training steps, without evaluation, pauses, and steps that were lost and taken again.

        Args:
          batch_size: pictures per step.
          start: counts the steps after this one.
          end: counts the steps up to this one; None for all.
        """
        total, before = 0.0, start
        for record in self.train:
            # A record covers the steps since the one before, at its rate.
            if start < record.step <= (math.inf if end is None else end):
                total += (record.step - before) * batch_size / record.images_per_second
                before = record.step
        return total

    def steps_by_resolution(self, planned: Callable[[int], int]) -> dict[int, int]:
        """Steps taken at each resolution.

        Args:
          planned: the resolution of an epoch, counted from 0, by the settings; for records without a resolution.
        """
        steps, before = dict[int, int](), 0
        for record in self.train:
            side = record.resolution or planned(max(math.ceil(record.epoch) - 1, 0))
            steps[side] = steps.get(side, 0) + record.step - before
            before = record.step
        return steps


def read_log(path: Path) -> RunLog:
    """Reads `metrics.jsonl`; a run without one has an empty log.

    A resumed run repeats the steps after its last checkpoint. A start record voids the records of later steps before
    it. So does any record for its own kind, as earlier versions wrote no start records. Lines that are not a whole
    record, such as half a line left by a killed process, are skipped, and listed in the log.

    Raises:
      UserError: the file cannot be read.
    """
    log = RunLog([], [])
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; move it away to continue without it") from error
    for number, line in enumerate(lines, 1):
        try:
            record = _parse(line) if line.strip() else None
        except (ValueError, RecursionError, UserError):
            log.damaged.append(number)
            continue
        if record is not None:
            log.ends[:] = [record] if isinstance(record, EndRecord) else []
        match record:
            case StartRecord():
                _drop_after(log.train, record.step)
                _drop_after(log.validation, record.step)
            case TrainRecord():
                _drop_after(log.train, record.step - 1)
                log.train.append(record)
            case HeadRecord():
                log.heads[:] = [record]
            case ValidationRecord():
                _drop_after(log.validation, record.step - 1)
                log.validation.append(record)
    return log


def _drop_after(records: list[TrainRecord] | list[ValidationRecord], step: int) -> None:
    while records and records[-1].step > step:
        records.pop()


def _to_json(record: Record) -> dict[str, str | float]:
    values = {"step": record.step, "epoch": round(record.epoch, 4), "time": round(record.time, 3)}
    return {"kind": record.kind, **values, **_metrics(record)}


def tagged(record: Record) -> dict[str, float]:
    """Returns the metrics of a record by the names that TensorBoard and other logs show, such as `train/loss`."""
    return {f"{record.kind}/{name}": value for name, value in _metrics(record).items()}


def _metrics(record: Record) -> dict[str, float]:
    values = dataclasses.asdict(record).items()
    return {name: value for name, value in values if name not in _COORDINATES and value is not None}


def _check_finite(record: Record) -> None:
    """Raises a `UserError` if a metric is not finite, which JSON cannot hold.

    A step that makes infinite parameters is noticed here, before they are saved, if an evaluation follows it.
    """
    for name, value in _metrics(record).items():
        if not math.isfinite(value):
            raise UserError(
                f"training diverged: after step {record.step:,} the {record.kind} {name} is {value}; earlier "
                "checkpoints are whole. Lower --optim.learning_rate or set --optim.clip_norm, and give another "
                "--workdir"
            )


def _parse(line: str) -> Record | None:
    """Returns the record of a line; None if it is of a kind that this version does not know.

    Raises:
      ValueError, RecursionError, UserError: the line is not a whole record.
    """
    found = decode(dict[str, Any], json.loads(line), "record")
    kind = _KINDS.get(decode(str, found.get("kind"), "kind"))
    if kind is None:
        return None
    # Fields that this version does not know are ignored; fields with a default may be missing.
    fields = [item for item in dataclasses.fields(kind) if item.name in found]
    values = {item.name: found[item.name] if item.type is float else _to_int(found[item.name]) for item in fields}
    record: Record = decode(kind, values, "record")
    _check_ranges(record)
    return record


def _to_int(value: object) -> object:
    """Returns a whole number as an integer: JSON may have it as 48.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_ranges(record: Record) -> None:
    """Raises ValueError if a value is impossible, with which the report could not compute."""
    values = dataclasses.asdict(record)
    possible = [
        record.step >= 0,
        record.epoch >= 0,
        0 <= record.time < _LATEST,
        not isinstance(record, TrainRecord) or (record.images_per_second > 0 and (record.resolution or 1) > 0),
        all(value is None or abs(value) <= _LARGEST for value in values.values()),
    ]
    if not all(possible):
        raise ValueError(f"a value is out of range: {values}")


@contextmanager
def _write_errors(workdir: Path) -> Iterator[None]:
    """Turns the system's refusal to write into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the log cannot be written to {workdir}: {describe(error, workdir)}; {remedy(error) or 'check the path'} "
            "and run again to resume"
        ) from error
