"""Writes a comparison of runs as a page without network, as tables in Markdown, or as CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from jaxcnn.run.charts import SERIES, Curve, draw_curves
from jaxcnn.run.comparison import Comparison, Table, best_first, tabulate, to_records
from jaxcnn.run.page import render_page
from jaxcnn.run.recorded import RecordedRun
from jaxcnn.run.report import average_records

LISTED = 100
"""Most pictures on which two runs differ that the page lists."""


def to_csv(comparison: Comparison) -> str:
    """Returns one row for each run, with numbers that are not rounded."""
    records, text = to_records(comparison), io.StringIO()
    writer = csv.DictWriter(text, records[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """Returns the tables in the Markdown that GitHub shows."""
    return "\n".join(map(_markdown_table, tabulate(comparison)))


def _markdown_table(table: Table) -> str:
    lines = [
        _markdown_row([header.removeprefix(">") for header in table.columns]),
        _markdown_row(["---:" if header.startswith(">") else "---" for header in table.columns], escape=False),
        *map(_markdown_row, table.rows),
    ]
    return "\n".join([f"**{table.title}**", "", *lines, "", *([table.note, ""] if table.note else [])])


def _markdown_row(cells: Sequence[str], *, escape: bool = True) -> str:
    if escape:
        cells = [
            " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split()) for cell in cells
        ]
    return f"| {' | '.join(cells)} |"


def to_html(comparison: Comparison) -> str:
    """Returns a page that needs no network: the tables, the curves, and the pictures on which runs differ."""
    shown = best_first(comparison)[: len(SERIES)]
    return render_page(
        "comparison.html",
        comparison=comparison,
        tables=tabulate(comparison),
        charts=draw_runs(shown),
        legend=list(zip((run.name for run in shown), SERIES.values(), strict=False)),
        hidden=len(best_first(comparison)) - len(shown),
        listed=LISTED,
    )


def draw_runs(runs: Sequence[RecordedRun]) -> dict[str, Markup]:
    """Draws the learning curves of runs on top of each other; returns SVG by title, without curves that no run has."""
    colors = dict(zip((run.name for run in runs), SERIES, strict=False))

    def draw(get: Callable[[RecordedRun], Sequence[Mapping[str, float]]], name: str, *, percent: bool = False) -> str:
        records = {run.name: get(run) for run in runs}
        curves = [
            Curve(run, colors[run], [record["epoch"] for record in found], [record[name] for record in found])
            for run, found in records.items()
            if found
        ]
        return draw_curves(curves, percent=percent, legend=False) if curves else ""

    charts = {
        "Top-1 accuracy on validation pictures": draw(_validation_records, "top1", percent=True),
        "Loss on validation pictures": draw(_validation_records, "loss"),
        "Loss on augmented training pictures": draw(_train_records, "loss"),
        "Learning rate": draw(_train_records, "learning_rate"),
    }
    return {title: Markup(svg) for title, svg in charts.items() if svg}  # noqa: S704 drawn here


def _validation_records(run: RecordedRun) -> list[dict[str, float]]:
    return [{"epoch": record.epoch, "top1": record.top1, "loss": record.loss} for record in run.log.validation]


def _train_records(run: RecordedRun) -> list[dict[str, float]]:
    return average_records(run.log.train) if run.log.train else []


WRITERS: dict[str, Callable[[Comparison], str]] = {".html": to_html, ".md": to_markdown, ".csv": to_csv}
"""Writes a comparison, by the ending of the file."""
