"""The progress of training on the terminal."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxcnn.run.metrics_log import TrainRecord

console = Console(stderr=True, highlight=False, markup=False)  # Names of data sets may contain brackets.

UNMEASURED = 2
"""First steps of a session, in which the step is compiled."""
MEASURED_SECONDS = 3.0
"""Least time in which the next steps are measured."""


SILENT_SECONDS = 2.0
"""Longest time without a line that says what is being done."""


def warn(line: str) -> None:
    """Prints a warning, also in quiet mode."""
    Console(stderr=True, highlight=False, markup=False).print(f"warning: {line}", soft_wrap=True)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Prints what is being done if it takes over two seconds, and afterwards its time.

    A thread prints the first line, since the main thread may be in compiled code.
    """
    announced = threading.Event()

    def announce() -> None:
        announced.set()
        console.print(f"{what} ...", soft_wrap=True)

    started, timer = time.monotonic(), threading.Timer(SILENT_SECONDS, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if announced.is_set():
        console.print(f"{what}: {time.monotonic() - started:.0f} s", soft_wrap=True)


class TrainProgress:
    """A bar with rate and remaining time on a terminal; elsewhere only the printed lines. Use `open_progress`."""

    def __init__(
        self, progress: Progress, *, total_steps: int, first_step: int, epochs: int, expect: Callable[[float], str]
    ):
        self._progress = progress
        self._expect = expect
        self._counted = 0
        self._started = 0.0
        self._epochs = epochs
        self._announced = set[Hashable]()
        self._task = progress.add_task("", total=total_steps, completed=first_step, rate="", epoch="")

    def update(self, record: TrainRecord) -> None:
        """Moves the bar to the step of a record, and shows its loss and rate."""
        self._progress.update(
            self._task,
            completed=record.step,
            epoch=f"{record.epoch:.2f}/{self._epochs}",
            rate=f"loss {record.loss:.3f}  {record.images_per_second:,.0f} images/s",
        )

    def count_step(self) -> None:
        """Counts a step that was taken; once, after the first steps, prints what the run is expected to take.

        The first two steps are not measured: they are compiled. A run that ends sooner needs no such line.
        """
        self._counted += 1
        if self._counted <= UNMEASURED:
            self._started = time.monotonic()
        elif self._started:
            seconds = time.monotonic() - self._started
            if self._counted >= UNMEASURED + 3 and seconds >= MEASURED_SECONDS:
                self.print(self._expect(seconds / (self._counted - UNMEASURED)))
                self._started = 0.0

    @contextmanager
    def doing(self, what: str, *, first: Hashable = None) -> Iterator[None]:
        """Shows in the bar what is done in place of steps. If it takes long, it is printed the first time.

        Args:
          what: what is done.
          first: does all this only the first time that this value is given.
        """
        key = what if first is None else first
        is_new = key not in self._announced
        self._announced.add(key)
        if is_new or first is None:
            self._progress.update(self._task, rate=what)
        with stage(what) if is_new else nullcontext():
            yield

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(line, soft_wrap=True)


@contextmanager
def open_progress(
    *, total_steps: int, first_step: int, epochs: int, expect: Callable[[float], str]
) -> Iterator[TrainProgress]:
    """Shows the progress of training on stderr until the context ends.

    Args:
      total_steps: steps of the whole run.
      first_step: steps taken before.
      epochs: epochs of the whole run.
      expect: describes what the run takes, given the seconds of a step.
    """
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=console.quiet or not console.is_terminal) as progress:
        yield TrainProgress(progress, total_steps=total_steps, first_step=first_step, epochs=epochs, expect=expect)
