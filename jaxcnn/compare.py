"""Compares training runs: `python -m jaxcnn.compare RUN [RUN ...] [--output FILE]`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxcnn import cli, options
from jaxcnn.disk import remedy, write_atomically
from jaxcnn.errors import UserError
from jaxcnn.paths import check_output, named_path
from jaxcnn.run.comparison import Comparison, Table, compare, tabulate
from jaxcnn.run.recorded import find_runs
from jaxcnn.table import print_line, print_table
from jaxcnn.terminal import stage

PROG = "python -m jaxcnn.compare"
ENDINGS = (".html", ".md", ".csv")
"""The files that a comparison can be written to, see `comparison_files.WRITERS`."""
SHOWN = 10
"""Most pictures on which two runs differ that the terminal lists."""


@dataclass(frozen=True)
class Arguments:
    """The command line of a comparison."""

    output: Path | None = None
    """File to write the comparison to: .html, a page with curves and the pictures on which runs differ; .md, tables for
    a README; .csv, one row of numbers for each run. None: it is only printed."""

    def __post_init__(self) -> None:
        if self.output is not None:
            check_output(self.output, endings=ENDINGS)


def main(arguments: Sequence[str]) -> None:
    """Compares the runs that the command line names, prints tables and writes the file that it asks for."""
    runs, rest = split_arguments(arguments)
    parsed = options.parse(
        Arguments(),
        rest,
        prog=f"{PROG} RUN [RUN ...]",
        description="Compares training runs by their workdirs, or all runs in a folder: what differs between them, "
        "their metrics with intervals, a paired test on the same pictures, and what they cost.",
    )
    if not runs:
        raise UserError(f"give workdirs of training runs, or a folder of them, such as: {PROG} runs")
    run(runs, parsed.output)


def run(paths: Iterable[str | Path], output: Path | None) -> None:
    """Compares runs, prints tables, and writes the file `output` if there is one.

    Raises:
      UserError: a path holds no run, a record is damaged, or the file cannot be written.
    """
    # Counting operations imports JAX, and drawing curves matplotlib.
    with stage("comparing the runs"):
        comparison = compare(find_runs([named_path(str(path), option="the run") for path in paths]))
        tables = tabulate(comparison)
    print_comparison(comparison, tables)
    if output is not None:
        with stage(f"writing {output}"):
            _write(comparison, output)
        print_line(f"written to {output}")


def _write(comparison: Comparison, output: Path) -> None:
    from jaxcnn.run.comparison_files import WRITERS

    # Paths in settings may hold bytes that are not UTF-8.
    content = WRITERS[output.suffix](comparison).encode("utf-8", "replace")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, content)
    except OSError as error:
        advice = remedy(error) or "give another --output"
        raise UserError(
            f"output {str(output)!r} cannot be written: {error.strerror}; {advice} and run again"
        ) from error


def split_arguments(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Splits a command line into the runs, which come first, and the options."""
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return arguments[:first], arguments[first:]


def print_comparison(comparison: Comparison, tables: Iterable[Table]) -> None:
    """Prints the tables, and some pictures on which a run and the best one differ."""
    for table in tables:
        _print_table(table)
    if comparison.unpaired and len(comparison.runs) > 1:
        names = ", ".join(comparison.unpaired)
        print_line(f"no test on the same pictures for {names}: without predictions for each picture")
    for paired in comparison.paired:
        found = [*paired.pair.first_only, *paired.pair.second_only]
        if found:
            rows = tuple((item.file, item.true, item.first, item.second) for item in found[:SHOWN])
            title = f"{len(found):,} pictures on which only one of {comparison.best} and {paired.name} is right"
            more = f"{len(found) - SHOWN:,} more are on the page that --output NAME.html writes"
            columns = ("picture", "true class", comparison.best or "", paired.name)
            _print_table(Table(title, columns, rows, more if len(found) > SHOWN else ""))


def _print_table(table: Table) -> None:
    print_line(table.title, style="bold")
    print_table(table.columns, table.rows)
    if table.note:
        print_line(table.note, style="dim")
        print()


if __name__ == "__main__":
    cli.run(main, PROG)
