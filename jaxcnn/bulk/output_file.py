"""What the files of predictions share: their rows, locks and errors, and the checks of what they had before."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxcnn.disk import describe, remedy, sync
from jaxcnn.errors import UserError

type Row = dict[str, Any]
"""The values of one picture by column; `features` is a list of numbers."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write a file into a `UserError`."""
    try:
        yield
    except OSError as error:
        advice = f"{remedy(error) or 'check the disk'} and run the same command again"
        raise UserError(f"{path} cannot be written: {describe(error, path.parent)}; {advice}") from error


@contextmanager
def closed_on_error(file: IO[Any]) -> Iterator[None]:
    """Closes a file if it turns out to be something else."""
    try:
        yield
    except BaseException:
        file.close()
        raise


def close_synced(file: IO[Any], path: Path) -> None:
    """Closes a file, and waits until it has reached the disk.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    with write_errors(path):
        file.close()
        sync(path)
        sync(path.parent)


def lock(file: IO[Any], path: Path) -> None:
    """Keeps other processes from writing a file until it is closed: each would cut off rows of the other.

    Raises:
      UserError: another process writes it.
    """
    try:
        import fcntl
    except ImportError:  # On Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have removed it since it was opened here: nobody would find the rows.
        is_written = os.fstat(file.fileno()).st_nlink == 0
    except BlockingIOError:
        is_written = True
    except OSError:
        return  # Some network drives have no locks.
    if is_written:
        raise UserError(f"another process writes {path}; wait for it or give another --output")


def check_begun(path: Path, start: bytes) -> None:
    """Raises UserError unless a file without a whole row is what an interruption leaves of one: the rest is dropped.

    Args:
      path: the file. A killed process leaves a part of the start, and a power cut zeros in place of any bytes.
      start: how a file of predictions begins.
    """
    with path.open("rb") as file:
        found = file.read(len(start))
    if any(byte not in (0, expected) for byte, expected in zip(found, start, strict=False)):
        raise UserError(f"{path} does not begin as predictions do; remove it or give another --output")


def check_columns(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raises UserError if a file has other columns than the rows to be written."""
    if list(found) != list(expected):
        raise UserError(
            f"{path} has the columns {', '.join(found)[:200]}, not {', '.join(expected)[:200]}; give the options "
            "that it was written with, or another --output"
        )


def check_model(path: Path, found: object, expected: str) -> None:
    """Raises UserError if a row is of another model."""
    if found != expected:
        raise UserError(
            f"{path} has predictions of the model with the SHA-256 {str(found)[:64]}..., not {expected}...; remove it "
            "or give another --output"
        )
