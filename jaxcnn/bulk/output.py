"""Files of predictions, one row for each picture: CSV, JSON Lines or Parquet.

Rows are appended as they come, so that what was done survives an interruption: a file that is opened again knows its
pictures, and a last row that is incomplete is dropped. After a power cut, all rows from the first lost one on are.
Each row names the model, so that a file never has predictions of two.
"""

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from jaxcnn.csv_line import csv_line
from jaxcnn.disk import describe, remedy, sync
from jaxcnn.errors import UserError
from jaxcnn.paths import readable
from jaxcnn.prediction import Prediction

ENDINGS = (".csv", ".jsonl", ".parquet")
"""Endings of the files that can be written."""

DIGITS = 6
"""Decimal places of probabilities and features."""

ROWS = 10_000
"""Rows of a Parquet file that are held in memory at once."""

MODEL_DIGITS = 12
"""Hexadecimal digits of a model's SHA-256 in a row."""

type Row = dict[str, Any]
"""The values of one picture by column; `features` is a list of numbers."""


def identify_model(path: Path) -> str:
    """Returns what a row says about its model: the first digits of the SHA-256 of its file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:MODEL_DIGITS]


def make_row(name: str, prediction: Prediction, features: np.ndarray | None = None) -> Row:
    """Returns the row of a picture.

    Its columns are `file`, `predicted_class`, `probability`, `class_2`, `probability_2` and so on, and `features`. An
    `Output` adds `model`.
    """
    row: Row = {"file": name}
    for rank, found in enumerate(prediction.top, 1):
        kind, share = ("predicted_class", "probability") if rank == 1 else (f"class_{rank}", f"probability_{rank}")
        row |= {kind: found.name, share: round(found.probability, DIGITS)}
    return row if features is None else row | {"features": [round(float(value), DIGITS) for value in features]}


def columns_of(*, top_k: int, channels: int | None) -> tuple[str, ...]:
    """Returns the columns of a row of `top_k` classes, and of features if the number of channels is given."""
    ranks = [column for rank in range(2, top_k + 1) for column in (f"class_{rank}", f"probability_{rank}")]
    return ("file", "predicted_class", "probability", *ranks, "model", *(["features"] if channels is not None else []))


class Output(Protocol):
    """A file of predictions that is open."""

    @property
    def done(self) -> Mapping[str, str]:
        """The predicted class of each picture that the file had when it was opened."""

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows; they are in the file when this returns.

        Raises:
          UserError: the disk is full or cannot be written.
        """

    def close(self) -> None:
        """Completes the file, and waits until it has reached the disk.

        Raises:
          UserError: as `write`.
        """


@contextmanager
def open_output(path: Path, *, top_k: int, channels: int | None, model: str) -> Iterator[Output]:
    """Opens a file of predictions, which may have some already. It is completed even if an error ends the context.

    Args:
      path: the file; its ending says what it becomes.
      top_k: classes in each row.
      channels: features in each row; None if rows have none.
      model: what the rows say about the model, from `identify_model`.

    Raises:
      UserError: the file has other columns, is of another model or something else, it cannot be written, or pyarrow is
        missing.
    """
    columns = columns_of(top_k=top_k, channels=channels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            output: CsvOutput | JsonlOutput | ParquetOutput = CsvOutput(path, columns, channels or 0, model)
        elif path.suffix == ".jsonl":
            output = JsonlOutput(path, columns, model)
        else:
            output = ParquetOutput(path, columns, model)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; give another --output") from error
    with closing(output):
        yield output


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write a file into a `UserError`."""
    try:
        yield
    except OSError as error:
        advice = f"{remedy(error) or 'check the disk'} and run the same command again"
        raise UserError(f"{path} cannot be written: {describe(error, path.parent)}; {advice}") from error


@contextmanager
def _closed_on_error(file: IO[Any]) -> Iterator[None]:
    """Closes a file if it turns out to be something else."""
    try:
        yield
    except BaseException:
        file.close()
        raise


def _lock(file: IO[Any], path: Path) -> None:
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
        # Another process may have removed it, complete, after it was opened here: rows would go where nobody finds them.
        is_written = os.fstat(file.fileno()).st_nlink == 0
    except BlockingIOError:
        is_written = True
    except OSError:
        return  # Some network drives have no locks.
    if is_written:
        raise UserError(f"another process writes {path}; wait for it or give another --output")


class CsvOutput:
    """Predictions as CSV in UTF-8; features are the columns `feature_1`, `feature_2` and so on."""

    def __init__(self, path: Path, columns: Sequence[str], channels: int, model: str):
        self._columns = [column for column in columns if column != "features"]
        self._path, self._model = path, model
        header = [*self._columns, *(f"feature_{number}" for number in range(1, channels + 1))]
        # Names that are not UTF-8 are written as the bytes that they are. A carriage return ends no line.
        self._file = path.open("a+", encoding="utf-8", errors="surrogateescape", newline="\n")
        with _closed_on_error(self._file):
            _lock(self._file, path)
            self.done, end = self._read(path, header)
            if not end:
                _check_begun(path, csv_line(header).encode())
            self._file.seek(end)
            self._file.truncate()
            if not end:
                self._file.write(csv_line(header))
                self._file.flush()

    def _read(self, path: Path, header: Sequence[str]) -> tuple[dict[str, str], int]:
        """Returns the predicted class of each file, and where the last whole row ends."""
        self._file.seek(0)
        done, end = {}, 0
        for record, place in _whole_records(self._file):
            if not end:
                _check_columns(path, record, header)
            elif len(record) != len(header):
                raise UserError(
                    f"{path} has a row with other columns, {record[:3]}; remove it or give another --output"
                )
            else:
                _check_model(path, record[header.index("model")], self._model)
                done[record[0]] = record[1]
            end = place
        return done, end

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows."""
        with _write_errors(self._path):
            for row in rows:
                named = row | {"model": self._model}
                self._file.write(csv_line([*(named[column] for column in self._columns), *row.get("features", ())]))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with _write_errors(self._path):
            self._file.close()
            sync(self._path)
            sync(self._path.parent)


def _whole_records(file: IO[str]) -> Iterator[tuple[list[str], int]]:
    """Yields the records of a CSV file that end with a line break, each with the place in bytes where it ends."""
    place = 0

    def lines() -> Iterator[str]:
        nonlocal place
        for line in file:
            if not line.endswith("\n") or "\0" in line:
                return  # Cut off while it was written, or lost in a power cut.
            place += len(line.encode("utf-8", "surrogateescape"))
            yield line

    # Names may hold line breaks, so that a record may be several lines; the last may end within quotes.
    reader = csv.reader(lines(), strict=True)
    try:
        for record in reader:
            yield record, place
    except csv.Error:
        return


def _check_begun(path: Path, start: bytes) -> None:
    """Raises UserError unless a file without a whole row is what an interruption leaves of one: the rest is dropped.

    Args:
      path: the file. A killed process leaves a part of the start, and a power cut zeros in place of any bytes.
      start: how a file of predictions begins.
    """
    with path.open("rb") as file:
        found = file.read(len(start))
    if any(byte not in (0, expected) for byte, expected in zip(found, start, strict=False)):
        raise UserError(f"{path} does not begin as predictions do; remove it or give another --output")


def _check_columns(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raises UserError if a file has other columns than the rows to be written."""
    if list(found) != list(expected):
        raise UserError(
            f"{path} has the columns {', '.join(found)[:200]}, not {', '.join(expected)[:200]}; give the options "
            "that it was written with, or another --output"
        )


def _check_model(path: Path, found: object, expected: str) -> None:
    """Raises UserError if a row is of another model."""
    if found != expected:
        raise UserError(
            f"{path} has predictions of the model with the SHA-256 {str(found)[:64]}..., not {expected}...; remove it "
            "or give another --output"
        )


class JsonlOutput:
    """Predictions as JSON Lines: an object by column in each line."""

    def __init__(self, path: Path, columns: Sequence[str], model: str):
        self._path, self._columns, self._model = path, columns, model
        self._file = path.open("a+b")
        with _closed_on_error(self._file):
            _lock(self._file, path)
            self.done, end = self._read(path)
            if not end:
                _check_begun(path, b'{"file": "')
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
            _check_model(path, row["model"], self._model)
            if not is_whole:
                break  # Only the line feed is missing.
            done[row["file"]] = row["predicted_class"]
            end += len(line)
        return done, end

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows."""
        with _write_errors(self._path):
            for row in rows:
                named = row | {"model": self._model}
                line = json.dumps({column: named[column] for column in self._columns})
                self._file.write(f"{line}\n".encode())
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with _write_errors(self._path):
            self._file.close()
            sync(self._path)
            sync(self._path.parent)

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
        _check_columns(path, list(row), columns)
        if isinstance(row["file"], str) and isinstance(row["predicted_class"], str):
            return row
    raise UserError(f"line {number} of {path} is not a prediction; remove it or give another --output")


def unfinished_path(path: Path) -> Path:
    """Returns where the rows of a Parquet file are kept until it is complete."""
    return path.with_name(f"{path.name}.unfinished.jsonl")


class ParquetOutput:
    """Predictions as Parquet, which cannot be appended to: rows are kept as JSON Lines beside it until it is closed."""

    def __init__(self, path: Path, columns: Sequence[str], model: str):
        self._arrow = _import_arrow()
        self._path = path
        self._schema = self._arrow.schema([(column, self._kind(column)) for column in columns])
        self._unfinished = unfinished_path(path)
        # Locked first: another process may be about to complete the file.
        self._rows = JsonlOutput(self._unfinished, columns, model)
        try:
            self._complete = self._read_done(model)
        except BaseException:
            self._rows.abandon()
            raise
        self.done = self._complete | self._rows.done

    def _read_done(self, model: str) -> dict[str, str]:
        """Returns the predicted class of each picture in the file, if it exists."""
        done: dict[str, str] = {}
        for rows in self._read_groups() if self._path.exists() else ():
            for found in rows["model"].unique().to_pylist():
                _check_model(self._path, found, model)
            done |= dict(zip(*(rows[name].to_pylist() for name in ("file", "predicted_class")), strict=True))
        return done

    def _kind(self, column: str) -> Any:
        """Returns the type of a column."""
        if column == "features":
            return self._arrow.list_(self._arrow.float32())
        return self._arrow.float64() if column.startswith("probability") else self._arrow.string()

    def _read_groups(self) -> Iterator[Any]:
        """Yields the row groups of the file.

        Raises:
          UserError: it is not Parquet, is damaged or has other columns.
          OSError: it cannot be read.
        """
        try:
            with self._arrow.parquet.ParquetFile(self._path) as file:
                _check_columns(self._path, file.schema_arrow.names, self._schema.names)
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group)
        except (self._arrow.ArrowException, OSError) as error:
            # Without a number it comes from the content, not from the system.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"{self._path} is not a Parquet file; remove it or give another --output") from error

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows to the file beside the Parquet file."""
        self._rows.write(rows)

    def close(self) -> None:
        """Writes the Parquet file with all rows, in place of the earlier one."""
        partial = self._path.with_name(f".{self._path.name}")
        with _write_errors(self._path), self._rows.lock_kept():
            self._rows.close()
            try:
                self._write_all(partial)
                # The rows beside the file are needed until the file has reached the disk, and its name too.
                sync(partial)
                partial.replace(self._path)
                sync(self._path.parent)
            except BaseException:
                with suppress(OSError):  # A disk that fails may not let it be removed either.
                    partial.unlink(missing_ok=True)
                raise
            self._unfinished.unlink()

    def _write_all(self, path: Path) -> None:
        """Writes a Parquet file with the rows of the earlier one and those beside it."""
        with self._arrow.parquet.ParquetWriter(path, self._schema) as writer:
            for rows in self._read_groups() if self._path.exists() else ():
                writer.write_table(rows)
            with self._unfinished.open("rb") as lines:
                for batch in itertools.batched(lines, ROWS):
                    rows = [json.loads(line) for line in batch]
                    rows = [row | {"file": readable(row["file"])} for row in rows]  # Parquet keeps UTF-8 alone.
                    # A process that was killed before it removed these rows has left some that the file has already.
                    rows = [row for row in rows if row["file"] not in self._complete]
                    writer.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))


def _import_arrow() -> Any:
    """Returns pyarrow, which only Parquet needs."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow; run pip install pyarrow, or give a name that ends with .csv") from error
    return pyarrow
