"""Predictions as CSV."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

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
from jaxcnn.csv_line import csv_line
from jaxcnn.errors import UserError


class CsvOutput:
    """Predictions as CSV in UTF-8; features are the columns `feature_1`, `feature_2` and so on."""

    def __init__(self, path: Path, columns: Sequence[str], channels: int, model: str):
        self._columns = [column for column in columns if column != "features"]
        self._path, self._model = path, model
        header = [*self._columns, *(f"feature_{number}" for number in range(1, channels + 1))]
        # Names that are not UTF-8 are written as the bytes that they are. A carriage return ends no line.
        self._file = path.open("a+", encoding="utf-8", errors="surrogateescape", newline="\n")
        with closed_on_error(self._file):
            lock(self._file, path)
            self.done, end = self._read(path, header)
            if not end:
                check_begun(path, csv_line(header).encode())
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
                check_columns(path, record, header)
            elif len(record) != len(header):
                raise UserError(
                    f"{path} has a row with other columns, {record[:3]}; remove it or give another --output"
                )
            else:
                check_model(path, record[header.index("model")], self._model)
                done[record[0]] = record[1]
            end = place
        return done, end

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows."""
        with write_errors(self._path):
            for row in rows:
                named = row | {"model": self._model}
                self._file.write(csv_line([*(named[column] for column in self._columns), *row.get("features", ())]))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        close_synced(self._file, self._path)


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
