"""Progress of training on the terminal, for people."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, markup=False)  # names of data sets may hold brackets


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
