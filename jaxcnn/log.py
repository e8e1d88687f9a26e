"""What a run tells while it runs: metrics to disk for programs, progress to the terminal for people."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

console = Console(stderr=True, highlight=False)


class MetricsLog:
    """Appends to a run's `metrics.jsonl` and to TensorBoard event files beside it. Use `open_log`."""

    def __init__(self, lines: IO[str], events: SummaryWriter):
        self._lines = lines
        self._events = events

    def write(self, kind: str, *, step: int, epoch: float, **values: float) -> None:
        """Records the values of one moment.

        Args:
          kind: `train` or `validation`.
          step: steps taken so far. A resumed run may repeat steps: the last line of a step counts.
          epoch: passes over the training pictures so far.
          values: by name, such as loss and top1.
        """
        record = {"kind": kind, "step": step, "epoch": round(epoch, 4), "time": round(time.time(), 3)}
        self._lines.write(json.dumps(record | values) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()


@contextmanager
def open_log(workdir: Path) -> Iterator[MetricsLog]:
    """Opens the log of a run, to be continued if there is one."""
    lines_path = workdir / "metrics.jsonl"
    torn = lines_path.exists() and not lines_path.read_bytes().endswith(b"\n")
    with lines_path.open("a") as lines, SummaryWriter(str(workdir)) as events:
        if torn:  # a killed process can leave half a line; the next one must not be glued to it
            lines.write("\n")
        yield MetricsLog(lines, events)


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
        self._progress.console.print(line, soft_wrap=True, markup=False)


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
