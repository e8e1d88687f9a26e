"""What a run tells while it runs: metrics to disk for programs, progress to the terminal for people."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from jaxcnn.errors import UserError

console = Console(stderr=True, highlight=False, markup=False)  # names of data sets may hold brackets


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
            f"the log cannot be written to {workdir}: {error.strerror}; make room and run again to go on"
        ) from error


class TrainProgress:
    """A bar with rate and time left on a terminal; elsewhere a line for each epoch only. Use `open_progress`."""

    def __init__(self, progress: Progress, total_steps: int, first_step: int):
        self._progress = progress
        self._task = progress.add_task("", total=total_steps, completed=first_step, rate="", epoch="")

    def update(self, *, step: int, epoch: str, loss: float, images_per_second: float) -> None:
        """Shows how far the run is."""
        rate = f"loss {loss:.3f}  {images_per_second:,.0f} images/s"
        self._progress.update(self._task, completed=step, epoch=epoch, rate=rate)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(line, soft_wrap=True)


@contextmanager
def open_progress(*, total_steps: int, first_step: int) -> Iterator[TrainProgress]:
    """Shows the progress of training on stderr."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield TrainProgress(progress, total_steps, first_step)
