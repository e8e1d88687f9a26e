"""What a command prints on standard error while it works: lines, bars, and what takes long."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jaxcnn.cli import printable


class _Lossy:
    """A stream that drops what cannot be written; all else is that of the stream.

    The reader of a log may have ended, its disk may be full, or a terminal be closed.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _StandardError(Console):
    """Standard error. A line that cannot be printed is dropped, and ends nothing: rich itself would end the process."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False)  # Names of data sets may contain brackets.

    @property
    def file(self) -> Any:
        """Standard error as it is now."""
        return _Lossy(super().file)

    @file.setter
    def file(self, stream: Any) -> None:
        raise NotImplementedError("the console writes to standard error")


console = _StandardError()
"""Prints nothing in quiet mode."""

SILENT_SECONDS = 2.0
"""Longest time without a line that says what is being done."""


def warn(line: str) -> None:
    """Prints a warning, also in quiet mode; names of files in it may hold what controls a terminal."""
    _StandardError().print(printable(f"warning: {line}"), soft_wrap=True)


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


@contextmanager
def open_bar(
    what: str, *, total: int | None, is_hidden: bool = False, is_kept: bool = False
) -> Iterator[Callable[..., None]]:
    """Draws a bar, if standard error is a terminal, which goes away when the context ends.

    Args:
      what: what is being done.
      total: how much there is to do; None if that is not known.
      is_hidden: draw nothing.
      is_kept: leave the full bar at the end; where there is no terminal, it is printed then.

    Yields:
      A function that changes the bar. Its named arguments are `advance`, by how much more is done, or `completed`,
      `description` and `total`.
    """
    speed = [TaskProgressColumn(show_speed=True)] if total is None else []
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *speed
    is_shown = not is_hidden and not console.quiet and (is_kept or console.is_terminal)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=not is_kept,
        redirect_stdout=False,  # A table must not be redirected to where the bar is.
        disable=not is_shown,
    ) as progress:
        yield partial(progress.update, progress.add_task(printable(what), total=total))


def with_bar[T](items: Iterable[T], what: str, *, total: int) -> Iterator[T]:
    """Yields items, and draws a bar while they are taken; see `open_bar`."""
    with open_bar(what, total=total) as update:
        for item in items:
            yield item
            update(advance=1)
