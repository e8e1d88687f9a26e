"""The progress of training on the terminal."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import fmean

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxcnn.run.cost import format_duration
from jaxcnn.run.metrics_log import TrainRecord
from jaxcnn.terminal import console, stage

UNMEASURED = 2
"""First steps of a session, in which the step is compiled."""
LEAST_STEPS = 3
MEASURED_SECONDS = 3.0
"""The next steps are measured until there are so many, and for so long; one is enough if it takes so long."""
LINE_SECONDS = 60.0
"""Time between two lines of progress where there is no bar."""
AVERAGED_RECORDS = 15
"""The time to go is estimated from the mean speed of so many records."""


def is_measured(steps: int, seconds: float) -> bool:
    """Returns whether the time of a step is known well enough from so many steps that took so long together."""
    return steps > 0 and seconds >= MEASURED_SECONDS and (steps >= LEAST_STEPS or seconds >= MEASURED_SECONDS * steps)


class TrainProgress:
    """A bar with rate and remaining time on a terminal; elsewhere only the printed lines. Use `open_progress`."""

    def __init__(
        self,
        progress: Progress,
        *,
        total_steps: int,
        first_step: int,
        epochs: int,
        expect: Callable[[float], str],
        to_go: Callable[[TrainRecord, float], float],
    ):
        self._progress = progress
        self._expect = expect
        self._to_go = to_go
        self._paces = deque[float](maxlen=AVERAGED_RECORDS)
        self._resolution: int | None = None
        self._counted = 0
        self._started = 0.0
        self._is_paused = False
        self._epochs = epochs
        self._announced = set[Hashable]()
        self._next_line = time.monotonic() + LINE_SECONDS
        self._task = progress.add_task("", total=total_steps, completed=first_step, rate="", epoch="", to_go="")

    def update(self, record: TrainRecord) -> None:
        """Moves the bar to the step of a record, and shows its loss and rate; without a bar in a line now and then."""
        epoch, rate = f"{record.epoch:.2f}/{self._epochs}", f"{record.images_per_second:,.0f} images/s"
        seconds = self._estimate(record)
        to_go = f"{format_duration(seconds)} of steps to go" if seconds else ""
        shown = f"loss {record.loss:.3f}  {rate}"
        self._progress.update(self._task, completed=record.step, epoch=epoch, rate=shown, to_go=to_go)
        now = time.monotonic()
        if self._progress.disable and now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            self.print(f"epoch {epoch}: loss {record.loss:.3f}, {rate}{to_go and f', {to_go}'}")

    def _estimate(self, record: TrainRecord) -> float:
        """Estimates the seconds of the steps to come from the last records at the same resolution.

        The clock would not do: it also runs during evaluations, saves and compilations.
        """
        if record.resolution != self._resolution:
            self._resolution = record.resolution
            self._paces.clear()
        self._paces.append(1 / record.images_per_second)
        return self._to_go(record, fmean(self._paces))

    def count_step(self) -> None:
        """Counts a step that was taken; once, after the first steps, prints what the run is expected to take.

        The first two steps are not measured: they are compiled. A run that ends sooner needs no such line.
        """
        self._counted += 1
        if self._counted <= UNMEASURED:
            self._started = time.monotonic()
        elif self._started:
            steps, seconds = self._counted - UNMEASURED, time.monotonic() - self._started
            if is_measured(steps, seconds):
                self.print(self._expect(seconds / steps))
                self._started = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Lets the clock of the steps stand still; one pause may lie within another."""
        began, is_outermost = time.monotonic(), not self._is_paused
        self._is_paused = True
        yield
        if is_outermost:
            self._is_paused = False
            self._started += time.monotonic() - began if self._started else 0.0

    @contextmanager
    def doing(self, what: str, *, first: Hashable = None) -> Iterator[bool]:
        """Shows in the bar what is done in place of steps, which does not count as their time.

        If it takes long, it is printed the first time.

        Args:
          what: what is done.
          first: does all this only the first time that this value is given.

        Yields:
          Whether it is the first time.
        """
        key = what if first is None else first
        is_new = key not in self._announced
        self._announced.add(key)
        is_pause = is_new or first is None
        if is_pause:
            self._progress.update(self._task, rate=what)
        with self.paused() if is_pause else nullcontext(), stage(what) if is_new else nullcontext():
            yield is_new

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(line, soft_wrap=True)


@contextmanager
def open_progress(
    *,
    total_steps: int,
    first_step: int,
    epochs: int,
    expect: Callable[[float], str],
    to_go: Callable[[TrainRecord, float], float],
) -> Iterator[TrainProgress]:
    """Shows the progress of training on stderr until the context ends.

    Args:
      total_steps: steps of the whole run.
      first_step: steps taken before.
      epochs: epochs of the whole run.
      expect: describes what the run takes, given the seconds of a step.
      to_go: estimates the seconds of the steps after a record, given the seconds of a picture at its resolution.
    """
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[to_go]}"),
    )
    with Progress(*columns, console=console, disable=console.quiet or not console.is_terminal) as progress:
        yield TrainProgress(
            progress, total_steps=total_steps, first_step=first_step, epochs=epochs, expect=expect, to_go=to_go
        )
