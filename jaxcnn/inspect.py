"""Says what is in a folder of pictures: `python -m jaxcnn.inspect PICTURES [--output findings.json]`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxcnn import cli, options
from jaxcnn.data.duplicates import LEAST_SIDE
from jaxcnn.data.findings import FEW, IMBALANCE
from jaxcnn.disk import remedy, write_atomically
from jaxcnn.errors import UserError
from jaxcnn.paths import check_output, named_path
from jaxcnn.run.describe import counted, ranged
from jaxcnn.run.survey_page import render
from jaxcnn.survey import Survey, survey, to_record
from jaxcnn.table import print_table
from jaxcnn.terminal import open_bar, stage

PROG = "python -m jaxcnn.inspect"
SHOWN = 10
"""Most classes, files or groups that are printed of each kind; `--output` has all."""
SHOWN_ALIKE = 4
"""Most files of a group of duplicates that are printed."""


@dataclass(frozen=True)
class Arguments:
    """The command line of an inspection."""

    output: Path | None = None
    """JSON file to write all findings to."""
    page: Path | None = None
    """HTML page to write, with the pictures that occur more than once side by side."""

    def __post_init__(self) -> None:
        for name in ("output", "page"):
            path = getattr(self, name)
            if path is not None:
                check_output(path, option=name)


def main(arguments: Sequence[str]) -> None:
    """Looks at all pictures of a folder or zip, prints what is in it, and writes the findings."""
    parsed, words = options.parse_with_words(
        Arguments(),
        arguments,
        prog=f"{PROG} PICTURES",
        description="Says what is in a folder or zip of pictures, with or without class folders, or in tar or Parquet "
        "files: classes and their sizes, files that cannot be read, and pictures that occur more than once, also in "
        "several splits or classes.",
    )
    if len(words) != 1:
        raise UserError(f"give one folder or zip of pictures, such as: {PROG} photos --output findings.json")
    with stage(f"inspecting {cli.printable(words[0])}"), open_bar("listing files", total=None) as update:
        found = survey(
            named_path(words[0], option="the folder"),
            advance=lambda what, done, total: update(description=what, completed=done, total=total),
        )
    record = to_record(found)
    print_findings(found, record)
    # Written last, so that the findings are not lost if a file cannot be written.
    if parsed.output is not None:
        _write(parsed.output, json.dumps(record, indent=1) + "\n")
    if parsed.page is not None:
        with stage("drawing the page"):
            page = render(
                found,
                page=parsed.page,
                summary=summarize(found),
                facts=list(describe(record)),
                oddities=dict(list_oddities(record)),
            )
        _write(parsed.page, page)


def print_findings(found: Survey, record: dict[str, Any]) -> None:
    """Prints the classes as a table, and each kind of finding with some examples."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(cli.printable(f"{found.where}: {summarize(found)}"))
    for line in describe(record):
        console.print(f"  {line}")
    # Classes, the largest first.
    if found.names:
        train, validation = record["splits"]["train"], record["splits"]["validation"]
        ranked = sorted(found.names, key=lambda name: -train[name])
        rows = [(name, f"{train[name]:,}", f"{validation[name]:,}") for name in ranked]
        if len(rows) > 2 * SHOWN:
            rows[SHOWN:-SHOWN] = [(f"... {len(rows) - 2 * SHOWN:,} more", "...", "...")]
        print_table(["class", ">training", ">validation"], rows)
    if found.problem:
        console.print(cli.printable(f"training would refuse this: {found.problem}"))
    for title, lines in list_findings(found, record):
        console.print(title)
        for line in lines[:SHOWN]:
            console.print(f"  {cli.printable(line)}")
        if len(lines) > SHOWN:
            console.print(f"  ... and {len(lines) - SHOWN:,} more")


def summarize(found: Survey) -> str:
    """Says how many pictures and classes there are."""
    pictures, classes = counted(len(found.pictures), "picture"), len(found.names)
    if not classes:
        return pictures
    return f"{pictures} in {'1 class' if classes == 1 else f'{classes:,} classes'}"


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yields what all pictures have in common, in a line each."""
    if record["formats"]:
        yield "formats: " + ", ".join(f"{count:,} {name}" for name, count in record["formats"].items())
        width, height = record["sizes"]["width"], record["sizes"]["height"]
        wide, high = (ranged(f"{side['least']:,}", f"{side['most']:,}") for side in (width, height))
        yield f"pixels: {wide} wide, {high} high"
    if record["passed_over"]:
        yield f"{counted(len(record['passed_over']), 'file')} passed over as no picture"
    if record["imbalance"] >= IMBALANCE:
        yield f"the largest class has {record['imbalance']:.0f} times as many training pictures as the smallest"


def list_findings(found: Survey, record: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yields the kinds of findings, worst first: a title, and a line for each case."""
    # Groups that spoil something come before those that only waste time.
    same = [group for group in found.contradictions if group.distance is None]
    alike = [group for group in found.contradictions if group.distance is not None]
    for title, groups in (
        ("the same picture, or nearly, in several splits, which spoils every measurement", found.leaks),
        ("the same picture in several classes, so that one label is wrong", same),
        ("pictures of several classes that look alike, so that a label may be wrong", alike),
        ("duplicates", found.duplicates),
    ):
        lines = [f"{join_files(found.files(group))} ({describe_distance(group.distance)})" for group in groups]
        if lines:
            yield f"{title} ({counted(len(lines), 'group')}):", lines
    for title, cases in list_oddities(record):
        yield f"{title} ({len(cases):,}):", [f"{name}{rest}" for name, rest in cases]


def list_oddities(record: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields the findings about single files and classes: a title, and for each case a name and what follows it."""
    # If all are gray or tiny, there is nothing odd about one of them.
    tiny, gray = (names if len(names) < record["pictures"] else [] for names in (record["tiny"], record["gray"]))
    for title, cases in (
        ("files that cannot be read", [(name, _follow(name, reason)) for name, reason in record["reasons"].items()]),
        (
            f"classes with fewer than {FEW} training pictures",
            [(name, f": {count}") for name, count in record["few"].items()],
        ),
        (f"pictures with a side of less than {LEAST_SIDE} pixels", [(name, "") for name in tiny]),
        ("gray pictures", [(name, "") for name in gray]),
    ):
        if cases:
            yield title, cases


def _follow(name: str, reason: str) -> str:
    """Returns what follows the name of a file in the message that says why it cannot be read."""
    return reason.removeprefix(name) if reason.startswith(name) else f": {reason}"


def join_files(names: Sequence[str]) -> str:
    """Joins the names of files that are alike: all of them, or some from as many folders as possible."""
    if len(names) <= SHOWN_ALIKE:
        return " = ".join(names)
    counts: Counter[str] = Counter()
    ranks = {}
    for name in names:
        folder = str(Path(name).parent)
        ranks[name] = counts[folder]
        counts[folder] += 1
    shown = sorted(names, key=lambda name: ranks[name])[:SHOWN_ALIKE]
    return f"{' = '.join(shown)} and {len(names) - SHOWN_ALIKE:,} more"


def describe_distance(distance: int | None) -> str:
    """Says how near the pictures of a group are."""
    return "the same pixels" if distance is None else f"nearly: {distance} of 64 bits of their hashes differ"


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names may hold bytes that UTF-8 cannot encode.
        write_atomically(path, content.encode("utf-8", "replace"))
    except OSError as error:
        advice = remedy(error) or "give another name"
        raise UserError(f"{path} cannot be written: {error.strerror}; {advice} and run again") from error
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, PROG)
