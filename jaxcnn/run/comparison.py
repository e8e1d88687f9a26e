"""Compares runs: what differs in settings, data and machine, how good they are, and what they cost."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxcnn.config import ModelConfig
from jaxcnn.intervals import wilson_interval
from jaxcnn.run.cost import count_parameters, format_duration, picture_flops, pictures_by_side
from jaxcnn.run.describe import describe_hardware, describe_precision, describe_software
from jaxcnn.run.flat_settings import flat_settings
from jaxcnn.run.paired import Answer, Pair, adjust, compare_answers
from jaxcnn.run.recorded import RecordedRun, read_answers

UNIMPORTANT = ("data.archive", "data.cache_dir", "checkpoint_minutes")
"""Settings that change neither what is trained nor how fast."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: what it shows.
      columns: their headers; `>` at the start aligns a column to the right.
      rows: the cells.
      note: how to read it; may be empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Paired:
    """A run beside the best one, on the same pictures.

    Attributes:
      name: the run.
      pair: the best run is the first, this run the second.
      p_value: adjusted for the number of runs by Holm's method.
    """

    name: str
    pair: Pair
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
      runs: in the order in which they were given.
      differences: what differs between them, by heading; one text for each run.
      best: name of the run with the highest top-1 accuracy; None if no run was measured.
      paired: the other runs beside the best one, as far as both have predictions for each picture.
      unpaired: names of the runs without predictions.
    """

    runs: Sequence[RecordedRun]
    differences: Mapping[str, tuple[str, ...]]
    best: str | None
    paired: tuple[Paired, ...]
    unpaired: tuple[str, ...]


def compare(runs: Sequence[RecordedRun]) -> Comparison:
    """Compares runs.

    Raises:
      UserError: the predictions of a run cannot be read.
    """
    measured = [run for run in runs if run.scores]
    best = max(measured, key=lambda run: (run.scores["top1"], -run.scores["loss"]), default=None)
    answers = {run.name: read_answers(run) for run in runs}
    return Comparison(
        runs=runs,
        differences=find_differences(runs),
        best=best.name if best else None,
        paired=_pair(best.name, answers) if best else (),
        unpaired=tuple(name for name, found in answers.items() if found is None),
    )


def _pair(best: str, answers: Mapping[str, Mapping[str, Answer] | None]) -> tuple[Paired, ...]:
    """Compares every run with the best one on the pictures that both have predictions for."""
    reference = answers[best] or {}
    found = {
        name: compare_answers(reference, other) for name, other in answers.items() if name != best and other is not None
    }
    pairs = {name: pair for name, pair in found.items() if pair.pictures}
    adjusted = adjust([pair.p_value for pair in pairs.values()])
    return tuple(Paired(name, pair, p) for (name, pair), p in zip(pairs.items(), adjusted, strict=True))


def find_differences(runs: Sequence[RecordedRun]) -> dict[str, tuple[str, ...]]:
    """Returns the settings, the data and the parts of the machine that differ between runs, by heading."""
    # Settings, by the names of their options. A network brings its shape: where the names differ, that says it all.
    settings = [dict(flat_settings(run.config)) for run in runs]
    found = {name: tuple(_show(values[name]) for values in settings) for name in settings[0] if name not in UNIMPORTANT}
    # Data and machine.
    found |= {
        heading: tuple(describe(run) for run in runs)
        for heading, describe in (
            ("data", _describe_data),
            ("precision", lambda run: describe_precision(run.config.model, run.environment) if run.environment else ""),
            ("machine", lambda run: describe_hardware(run.environment) if run.environment else ""),
            ("software", lambda run: describe_software(run.environment) if run.environment else ""),
            ("note", lambda run: run.workdir.read_note()),
        )
    }
    return {heading: texts for heading, texts in found.items() if len(set(texts)) > 1}


def _describe_data(run: RecordedRun) -> str:
    split = f", {run.pictures.train:,} + {run.pictures.validation:,}" if run.pictures else ""
    return f"{run.classes.dataset}{split}, {len(run.classes.names)} classes"


def _show(value: object) -> str:
    """Shows the value of a setting as it is given on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_show, value)) or "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Tables.


def tabulate(comparison: Comparison) -> list[Table]:
    """Returns the tables of a comparison: results, means over seeds, the paired test, and cost."""
    tables = [tabulate_results(comparison), tabulate_seeds(comparison), tabulate_pairs(comparison)]
    return [*filter(None, tables), tabulate_cost(comparison)]


def tabulate_results(comparison: Comparison) -> Table:
    """Returns what differs between the runs, and their metrics with 95% intervals."""
    adjusted = {paired.name: f"{paired.p_value:.2g}" for paired in comparison.paired}
    rows = []
    for index, run in enumerate(comparison.runs):
        scores, mark = run.scores, "" if run.evaluation else " (unfinished)"
        rows.append(
            (
                run.name + mark,
                *(texts[index] for texts in comparison.differences.values()),
                _share(scores.get("top1"), run.count),
                _share(scores.get("top5"), run.count),
                *(f"{scores[name]:.4f}" if scores else "" for name in ("loss", "ece")),
                *([adjusted.get(run.name, "best" if run.name == comparison.best else "")] if adjusted else []),
            )
        )
    headers = ("run", *comparison.differences, ">top-1", ">top-5", ">loss", ">calibration error")
    return Table(
        title="Results on the validation pictures",
        columns=(*headers, *([">p"] if adjusted else [])),
        rows=tuple(rows),
        note="In brackets: 95% intervals (Wilson 1927). The checkpoint of a run was chosen by the same pictures.",
    )


def _share(value: float | None, count: int | None) -> str:
    if value is None:
        return ""
    if not count:
        return f"{value:.4f}"
    low, high = wilson_interval(value, count)
    return f"{value:.4f} [{low:.3f}, {high:.3f}]"


def tabulate_seeds(comparison: Comparison) -> Table | None:
    """Returns mean and deviation over runs that differ in nothing but their seed; None if there are no such runs."""
    others = {heading: texts for heading, texts in comparison.differences.items() if heading not in ("seed", "note")}
    groups: dict[tuple[str, ...], list[float]] = {}
    for index, run in enumerate(comparison.runs):
        if run.evaluation is not None:
            groups.setdefault(tuple(texts[index] for texts in others.values()), []).append(run.scores["top1"])
    if "seed" not in comparison.differences or max(map(len, groups.values()), default=0) < 2:
        return None
    rows = [
        (
            *key,
            str(len(values)),
            f"{statistics.fmean(values):.4f}",
            f"{statistics.stdev(values):.4f}" if len(values) > 1 else "",
            f"{min(values):.4f}",
            f"{max(values):.4f}",
        )
        for key, values in sorted(groups.items(), key=lambda group: -statistics.fmean(group[1]))
    ]
    return Table(
        title="Top-1 accuracy over seeds",
        columns=(*others, ">runs", ">mean", ">standard deviation", ">lowest", ">highest"),
        rows=tuple(rows),
    )


def tabulate_pairs(comparison: Comparison) -> Table | None:
    """Returns McNemar's test of every run against the best one; None without predictions for each picture."""
    if not comparison.paired:
        return None
    return Table(
        title=f"Beside {comparison.best}, on the same pictures",
        columns=("run", ">pictures", ">only the best is right", ">only this run is right", ">p", ">p, adjusted"),
        rows=tuple(
            (
                paired.name,
                f"{paired.pair.pictures:,}",
                f"{len(paired.pair.first_only):,}",
                f"{len(paired.pair.second_only):,}",
                f"{paired.pair.p_value:.2g}",
                f"{paired.p_value:.2g}",
            )
            for paired in comparison.paired
        ),
        note="p: exact test of McNemar 1947, adjusted for the number of runs by Holm 1979. Below .05, runs differ by "
        "more than chance explains, on pictures such as these; seeds are another source of chance.",
    )


def tabulate_cost(comparison: Comparison) -> Table:
    """Returns what the runs took, in time and in floating-point operations, and what a prediction takes."""
    return Table(
        title="Cost",
        columns=("run", ">epochs", ">time of steps", ">pictures/s", ">training", ">parameters", ">one picture"),
        rows=tuple(
            (
                run.name,
                f"{cost['epochs']:g}",
                format_duration(cost["seconds"]),
                f"{cost['images_per_second']:,.0f}" if cost["images_per_second"] else "",
                _operations(cost["training_flops"]),
                f"{cost['parameters']:,}",
                _operations(cost["picture_flops"]),
            )
            for run in comparison.runs
            for cost in [measure_cost(run)]
        ),
        note="Floating-point operations of convolutions and dense layers; training counts forward and backward.",
    )


def _operations(count: int) -> str:
    """Formats a number of floating-point operations, such as `31.4 MFLOP`."""
    if not count:
        return "0"
    power = min(int(math.log10(count)) // 3, 7)
    return f"{count / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}FLOP"


def measure_cost(run: RecordedRun) -> dict[str, Any]:
    """Returns epochs, time and operations of a run, and the size of its network."""
    config, classes = run.config, len(run.classes.names)
    trained = dataclasses.replace(config.model, inference_side=None)  # Training does not resize pictures inside.
    rates = [record.images_per_second for record in run.log.train]
    return {
        "epochs": run.log.train[-1].epoch if run.log.train else 0,
        "seconds": run.log.seconds(config.batch_size),
        "images_per_second": statistics.median(rates) if rates else None,
        "training_flops": sum(
            3 * _picture_flops(trained, classes, side) * pictures
            for side, pictures in pictures_by_side(config, run.log).items()
        ),
        "parameters": _count_parameters(config, classes),
        "picture_flops": _picture_flops(config.model, classes, config.data.image_size),
    }


@functools.cache
def _picture_flops(model: ModelConfig, classes: int, side: int) -> int:
    return picture_flops(model, classes=classes, side=side)


_count_parameters = functools.cache(count_parameters)


def to_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns one record of numbers and settings for each run, for a CSV file."""
    pairs = {paired.name: paired for paired in comparison.paired}
    records = []
    for index, run in enumerate(comparison.runs):
        record: dict[str, Any] = {"run": run.name, "finished": run.evaluation is not None}
        record |= {heading: texts[index] for heading, texts in comparison.differences.items()}
        record |= {name: run.scores.get(name) for name in ("top1", "top5", "loss", "ece")}
        low, high = wilson_interval(run.scores["top1"], run.count) if run.scores and run.count else (None, None)
        record |= {"top1_low": low, "top1_high": high, "pictures": run.count, **measure_cost(run)}
        if comparison.paired:
            paired = pairs.get(run.name)
            record |= {"p": paired.pair.p_value if paired else None, "p_adjusted": paired.p_value if paired else None}
        records.append(record)
    return records


def best_first(comparison: Comparison) -> list[RecordedRun]:
    """Returns the runs that have metrics, the best first."""
    return sorted((run for run in comparison.runs if run.scores), key=lambda run: -run.scores["top1"])
