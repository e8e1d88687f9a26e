"""Predictions as JSON Lines."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxcnn.bulk.output_file import (
    Row,
    check_begun,
    check_columns,
    check_model,
    close_synced,
    closed_on_error,
    lock,
    write_errors,
)
from jaxcnn.errors import UserError


class JsonlOutput:
    """Predictions as JSON Lines: an object by column in each line."""

    def __init__(self, path: Path, columns: Sequence[str], model: str):
        self._path, self._columns, self._model = path, columns, model
        self._file = path.open("a+b")
        with closed_on_error(self._file):
            lock(self._file, path)
            self.done, end = self._read(path)
            if not end:
                check_begun(path, b'{"file": "')
            self._file.seek(end)
            self._file.truncate()

    def _read(self, path: Path) -> tuple[dict[str, str], int]:
        """Returns the predicted class of each file, and where the last whole line ends."""
        self._file.seek(0)
        done, end = {}, 0
        for number, line in enumerate(self._file, 1):
            is_whole = line.endswith(b"\n") and b"\0" not in line
            if not is_whole and not _is_json(line):
                break  # Cut off while it was written, or lost in a power cut.
            row = _parse_line(line, path, number=number, columns=self._columns)
            check_model(path, row["model"], self._model)
            if not is_whole:
                break  # Only the line feed is missing.
            done[row["file"]] = row["predicted_class"]
            end += len(line)
        return done, end

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows."""
        with write_errors(self._path):
            for row in rows:
                named = row | {"model": self._model}
                line = json.dumps({column: named[column] for column in self._columns})
                self._file.write(f"{line}\n".encode())
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        close_synced(self._file, self._path)

    def abandon(self) -> None:
        """Closes the file, and removes it if it was made for nothing."""
        with self.lock_kept():
            self._file.close()
            if not self.done:
                self._path.unlink()

    @contextmanager
    def lock_kept(self) -> Iterator[None]:
        """Keeps the lock of the file though it is closed; Windows, which has no lock, removes no file that is open."""
        if os.name == "nt":
            yield
            return
        descriptor = os.dup(self._file.fileno())  # A lock belongs to all copies of a descriptor.
        try:
            yield
        finally:
            os.close(descriptor)


def _is_json(line: bytes) -> bool:
    """Returns whether a line is JSON, with or without a line feed."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_line(line: bytes, path: Path, *, number: int, columns: Sequence[str]) -> Row:
    """Returns the row in a line of a file.

    Raises:
      UserError: the line is not a row, or has other columns.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        check_columns(path, list(row), columns)
        if isinstance(row["file"], str) and isinstance(row["predicted_class"], str):
            return row
    raise UserError(f"line {number} of {path} is not a prediction; remove it or give another --output")
