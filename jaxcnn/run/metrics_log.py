"""The log of a run, `metrics.jsonl` and TensorBoard event files: written while it trains, read back afterwards."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from jaxcnn.errors import UserError


class MetricsLog:
    """Appends to a run's `metrics.jsonl` and to TensorBoard event files beside it. Use `open_log`."""

    def __init__(self, workdir: Path, lines: IO[str], events: EventsWriter):
        self._workdir = workdir
        self._lines = lines
        self._events = events

    def write(self, kind: str, *, step: int, epoch: float, **values: float) -> None:
        """Records the values of one moment.

        Args:
          kind: `train` or `validation`; `start` where a run begins or goes on, and takes later steps anew.
          step: steps taken so far.
          epoch: passes over the training pictures so far.
          values: by name, such as loss and top1.

        Raises:
          UserError: the disk is full or cannot be written.
        """
        now = time.time()
        record = {"kind": kind, "step": step, "epoch": round(epoch, 4), "time": round(now, 3)}
        scalars = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in values.items()]
        with _user_errors(self._workdir):
            self._lines.write(json.dumps(record | values) + "\n")
            self._lines.flush()
            self._events.write_event(Event(wall_time=now, step=step, summary=Summary(value=scalars)))
            self._events.flush()


@contextmanager
def open_log(workdir: Path) -> Iterator[MetricsLog]:
    """Opens the log of a run, to be continued if there is one.

    Raises:
      UserError: the workdir cannot be written.
    """
    path = workdir / "metrics.jsonl"
    with _user_errors(workdir):
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        lines = path.open("a", encoding="utf-8")
        # Not tensorboardX's SummaryWriter: the thread it writes in dies on a full disk, and the run then waits forever.
        events = EventsWriter(str(workdir / "events"))
    try:
        if torn:  # a killed process can leave half a line; the next one must not be glued to it
            lines.write("\n")
        yield MetricsLog(workdir, lines, events)
    finally:
        for file in (lines, events):
            with suppress(OSError):  # what a full disk did not take was told when it was written
                file.close()


@contextmanager
def _user_errors(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the log cannot be written to {workdir}: {error.strerror}; make room and run again to resume"
        ) from error


@dataclass(frozen=True)
class RunLog:
    """The records of a run in the order of the steps.

    Attributes:
      train: a record for every few seconds.
      validation: a record for every epoch.
    """

    train: list[dict[str, float]]
    validation: list[dict[str, float]]

    def validation_of(self, step: int) -> dict[str, float] | None:
        """The validation record of the checkpoint of a step; None if that was not measured."""
        return next((record for record in self.validation if record["step"] == step), None)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one epoch; None before the first is over."""
        return round(self.validation[-1]["step"] / self.validation[-1]["epoch"]) if self.validation else None

    def seconds(self, batch_size: int, *, start: int = 0, end: int | None = None) -> float:
        """Time spent in training steps: without evaluation, pauses, and steps that were lost and repeated.

        Args:
          start: how many steps come before those that are asked for.
          end: how many there are after them; all, if None.
        """
        total, before = 0.0, float(start)
        for record in self.train:
            if start < record["step"] <= (math.inf if end is None else end):
                total += (record["step"] - before) * batch_size / record["images_per_second"]
                before = record["step"]
        return total

    def steps_by_resolution(self, planned: Callable[[int], int]) -> dict[int, int]:
        """Steps taken at each resolution.

        Args:
          planned: the resolution of an epoch, counted from 0, by the settings; older records do not tell theirs.
        """
        steps, before = dict[int, int](), 0
        for record in self.train:
            epoch, step = max(math.ceil(record["epoch"]) - 1, 0), int(record["step"])
            side = int(record.get("resolution", planned(epoch)))
            steps[side] = steps.get(side, 0) + step - before
            before = step
        return steps


def read_log(path: Path) -> RunLog:
    """Reads `metrics.jsonl`.

    A resumed run goes on from its checkpoint: its start overrules all records of later steps, and a record those of its
    kind with the same or a later step, as older logs do not tell of starts. Half a line, left by a killed process, is
    skipped.
    """
    log = RunLog([], [])
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        kind = record.pop("kind", None) if isinstance(record, dict) else None
        if kind == "start":
            for records in (log.train, log.validation):
                _forget(records, after=float(record["step"]))
        if kind not in ("train", "validation"):
            continue
        records = log.train if kind == "train" else log.validation
        _forget(records, after=record["step"] - 1.0)
        records.append({name: float(value) for name, value in record.items()})
    return log


def _forget(records: list[dict[str, float]], *, after: float) -> None:
    while records and records[-1]["step"] > after:
        records.pop()
