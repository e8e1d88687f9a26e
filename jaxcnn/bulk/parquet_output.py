"""Predictions as Parquet."""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxcnn.bulk.jsonl_output import JsonlOutput
from jaxcnn.bulk.output_file import Row, check_columns, check_model, write_errors
from jaxcnn.disk import sync
from jaxcnn.errors import UserError
from jaxcnn.paths import readable

ROWS = 10_000
"""Rows of a Parquet file that are held in memory at once."""


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
                check_model(self._path, found, model)
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
                check_columns(self._path, file.schema_arrow.names, self._schema.names)
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
        with write_errors(self._path), self._rows.lock_kept():
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
