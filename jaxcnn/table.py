"""Tables that commands print on standard output."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxcnn.cli import printable


def print_line(text: str, *, style: str = "") -> None:
    """Prints a line as it is: brackets in names are not styles."""
    Console(highlight=False).print(Text(printable(text), style=style), soft_wrap=True)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, or nothing if it has no rows. Where the terminal is too narrow, cells are wrapped.

    Args:
      headers: of the columns; `>` at the start aligns a column to the right. If all are empty, none is printed.
      rows: the cells, printed as they are.
    """
    table = Table(box=box.SIMPLE_HEAD, show_header=any(header.strip(">") for header in headers))
    for header in headers:
        shown = Text(printable(header.removeprefix(">")))
        is_number = header.startswith(">")
        # A name without spaces is longer than some terminals are wide: it goes over several lines, and numbers do not.
        table.add_column(shown, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if table.row_count:
        Console(highlight=False).print(table)
