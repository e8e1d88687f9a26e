"""Predictions as a table for people, printed row by row so that it never waits for the last one."""

from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size

from jaxcnn import cli
from jaxcnn.bulk.output_file import Row

WIDEST = 30
"""Most columns of the terminal for the name of a class."""


class Table:
    """Prints predictions to standard output. The file comes last: names of files have any length."""

    def __init__(self, names: Sequence[str], *, top_k: int):
        self.done: Mapping[str, str] = {}
        self._top_k = top_k
        self._width = min(max(map(cell_len, (*names, "predicted class"))), WIDEST)
        self._has_header = False

    def write(self, rows: Sequence[Row]) -> None:
        """Prints rows."""
        if rows and not self._has_header:
            self._has_header = True
            titles = ["predicted class", *(f"class {rank}" for rank in range(2, self._top_k + 1))]
            self._print([(title, "") for title in titles], "file")
        for row in rows:
            # The values alternate between classes and probabilities.
            file, *values = row.values()
            self._print([(name, f"{share:.3f}") for name, share in zip(values[::2], values[1::2], strict=True)], file)

    def close(self) -> None:
        """Does nothing: rows are printed as they come."""

    def _print(self, classes: Sequence[tuple[str, str]], file: str) -> None:
        cells = [f"{set_cell_size(cli.printable(name), self._width)} {share:5}" for name, share in classes]
        print(*cells, cli.printable(file), sep="  ")
