"""Lines of CSV files, whose values may hold any characters."""

import csv
import io
from collections.abc import Iterable


def csv_line(values: Iterable[object]) -> str:
    r"""Returns a line with its line feed. Values with commas, quotes, line feeds or carriage returns are quoted.

    Python 3.12 quotes a carriage return only if it is in the line terminator: `\r\n` is written, then replaced.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"
