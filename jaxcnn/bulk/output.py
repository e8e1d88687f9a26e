"""Files of predictions, one row for each picture: CSV, JSON Lines or Parquet.

Rows are appended as they come, so that what was done survives an interruption: a file that is opened again knows its
pictures, and a last row that is incomplete is dropped. After a power cut, all rows from the first lost one on are.
Each row names the model, so that a file never has predictions of two.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxcnn.bulk.csv_output import CsvOutput
from jaxcnn.bulk.jsonl_output import JsonlOutput
from jaxcnn.bulk.output_file import Row
from jaxcnn.bulk.parquet_output import ParquetOutput
from jaxcnn.errors import UserError
from jaxcnn.prediction import Prediction

ENDINGS = (".csv", ".jsonl", ".parquet")
"""Endings of the files that can be written."""

DIGITS = 6
"""Decimal places of probabilities and features."""

MODEL_DIGITS = 12
"""Hexadecimal digits of a model's SHA-256 in a row."""


def identify_model(path: Path) -> str:
    """Returns what a row says about its model: the first digits of the SHA-256 of its file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:MODEL_DIGITS]


def make_row(name: str, prediction: Prediction, features: np.ndarray | None) -> Row:
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
            output: Output = CsvOutput(path, columns, channels or 0, model)
        elif path.suffix == ".jsonl":
            output = JsonlOutput(path, columns, model)
        else:
            output = ParquetOutput(path, columns, model)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; give another --output") from error
    with closing(output):
        yield output
