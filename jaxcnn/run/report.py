"""The report of a run: one self-contained HTML page that needs no network."""

import base64
import dataclasses
import io
import json
import math
import os
import statistics
import urllib.parse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from markupsafe import Markup
from PIL import Image

from jaxcnn.calibration import Calibration
from jaxcnn.config import AugmentConfig
from jaxcnn.data import Dataset, Split, is_named
from jaxcnn.data.batches import steps_per_epoch
from jaxcnn.disk import remedy, write_atomically
from jaxcnn.errors import UserError
from jaxcnn.intervals import bootstrap_intervals, measure_classes, measure_macro, wilson_interval
from jaxcnn.label_errors import find_hardest, find_label_errors
from jaxcnn.metrics import MATRIX_LIMIT, Evaluation
from jaxcnn.run.charts import INK, TRAIN, VALIDATION, Curve, draw_curves, draw_reliability
from jaxcnn.run.cost import count_parameters, format_duration
from jaxcnn.run.describe import (
    counted,
    describe_augmentation,
    describe_fit,
    describe_hardware,
    describe_head,
    describe_network,
    describe_optimizer,
    describe_precision,
    describe_software,
    describe_training,
)
from jaxcnn.run.earlier_trainings import WARNING, Training, read_earlier
from jaxcnn.run.metrics_log import RunLog, TrainRecord, ValidationRecord, read_log
from jaxcnn.run.page import render_page
from jaxcnn.run.sessions import Session, describe_changes, read_sessions
from jaxcnn.run.workdir import Workdir
from jaxcnn.terminal import console

TABLE_LIMIT = 25
"""Largest number of classes whose confusion matrix is a table of numbers; with more it is an image."""
MAP_LIMIT = MATRIX_LIMIT
"""Largest number of classes with such an image; with more, only the most frequent confusions are listed."""
LIST_LIMIT = 1000
"""Largest number of classes in the list of all classes; with more, it has the worst ones."""
PICTURES = 24
"""Most pictures in a gallery."""
HARDEST = 4
"""Pictures of each class in the gallery of the hardest."""
HARD_CLASSES = 25
"""Most classes in that gallery; with more, the worst ones."""
THUMBNAIL = 128
"""Largest side of a picture on the page, in pixels."""
CURVE_POINTS = 200
"""Largest number of points of a training curve; more would only show noise."""


type Link = Callable[[str], str | None]
"""Returns the address of a picture's file for the page, or None if it cannot be opened."""


def write_report(workdir: Path, evaluation: Evaluation, dataset: Dataset, *, calibration: Calibration) -> Path:
    """Writes `report.html` into the workdir of a run.

    Args:
      workdir: holds the settings, the environment and the log of the run.
      evaluation: of the best checkpoint, calibrated, on `dataset.validation`.
      dataset: the run's pictures.
      calibration: of the best checkpoint.

    Returns:
      The path of the page.

    Raises:
      UserError: `workdir` is not a workdir, or cannot be written.
    """
    path, log = workdir / "report.html", read_log(Workdir(workdir).metrics)
    if log.damaged:
        lines = counted(len(log.damaged), "line")
        console.print(
            f"{Workdir(workdir).metrics} has {lines} without a whole record, from line {log.damaged[0]} on: the report "
            "leaves them out",
            soft_wrap=True,
        )
    page = render(
        sessions=read_sessions(Workdir(workdir)),
        earlier=read_earlier(Workdir(workdir).earlier_trainings),
        log=log,
        evaluation=evaluation,
        calibration=calibration,
        dataset=dataset,
        link=partial(link_to, Workdir(workdir)),
    )
    try:
        write_atomically(path, page)
    except OSError as error:
        advice = f"{remedy(error) or 'fix that'} and run again to write it"
        raise UserError(f"the report cannot be written to {path}: {error.strerror}; {advice}") from error
    return path


def render(
    *,
    sessions: Sequence[Session],
    earlier: Sequence[Training],
    log: RunLog,
    evaluation: Evaluation,
    calibration: Calibration,
    dataset: Dataset,
    link: Link = lambda file: None,
) -> str:
    """Returns the page as HTML. Class names and other untrusted text are escaped."""
    config, best = sessions[-1].config, log.validation_of(calibration.step)
    return render_page(
        "report.html",
        # The header and the run.
        dataset=dataset,
        evaluation=evaluation,
        calibration=calibration,
        pictures=counted(evaluation.count, "held-out picture"),
        interval=wilson_interval(evaluation.top1, evaluation.count),
        interval5=wilson_interval(evaluation.top5, evaluation.count),
        macro=measure_macro(evaluation.cells),
        macro_intervals=bootstrap_intervals(evaluation.cells),
        facts=describe_run(sessions, log, dataset, earlier=earlier),
        epochs=config.epochs,
        frozen=config.is_frozen,
        best=best,
        settings=json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False),
        environment=sessions[-1].environment,
        # Learning curves.
        log=log,
        charts=draw_log(log, best=best),
        augmented=any(session.config.augment != AugmentConfig() for session in sessions),
        label_smoothing=any(session.config.label_smoothing for session in sessions),
        # Classes and their confusions.
        **show_classes(evaluation, dataset.names),
        # Calibration.
        reliability=Markup(draw_reliability(evaluation.reliability)),  # noqa: S704 drawn here
        mean_confidence=float(evaluation.confidence.mean()),
        # Galleries.
        **show_galleries(evaluation, dataset, link=link),
        pixelated=dataset.validation.shown.shape[1] < 96,
    )


def describe_run(
    sessions: Sequence[Session], log: RunLog, dataset: Dataset, *, earlier: Sequence[Training], is_over: bool = True
) -> dict[str, str]:
    """Describes data, settings, time and hardware of a run and the trainings behind its initial weights, by heading.

    Args:
      sessions: the sessions of the run, at least one.
      log: the log of the run.
      dataset: the run's pictures.
      earlier: the trainings behind the initial weights.
      is_over: whether the last step in the log is the last of the run.
    """
    config = sessions[-1].config
    steps = steps_per_epoch(dataset.train, config.batch_size)
    # Settings, with the settings of earlier sessions where they differ.
    facts = {
        "Data": f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.validation):,} validation pictures "
        f"in {len(dataset.names)} classes, {config.data.image_size}x{config.data.image_size} pixels"
        + (f", {fit}" if (fit := describe_fit(config.data)) else ""),
        "License": dataset.license,
        "Model": f"{describe_network(config.model)}, {count_parameters(config, len(dataset.names)):,} parameters, "
        + describe_changes(sessions, lambda session: describe_precision(session.config.model, session.environment)),
        "Training": describe_changes(
            sessions, lambda session: describe_training(session.config, steps_per_epoch=steps)
        ),
    }
    # Without steps these have no effect.
    if not config.is_frozen:
        facts["Optimizer"] = describe_changes(sessions, lambda session: describe_optimizer(session.config.optim))
        facts["Augmentation"] = describe_changes(
            sessions, lambda session: describe_augmentation(session.config.augment)
        )
    if earlier:
        facts["Initial weights"] = ", then ".join(dict.fromkeys(map(_describe_earlier, earlier)))
    # What the log and the records of the sessions add; either may be missing.
    if log.heads:
        facts["Classifier"] = describe_head(log.heads[-1])
    if log.train:
        rate = statistics.median(record.images_per_second for record in log.train)
        facts["Time"] = f"{format_duration(log.seconds(config.batch_size))} in training steps, {rate:,.0f} pictures/s"
        moment = datetime.fromtimestamp(log.train[-1].time, UTC)
        facts["Finished" if is_over else "Last step"] = f"{moment:%d %B %Y, %H:%M} UTC"
    if all(session.environment for session in sessions):
        facts["Hardware"] = describe_changes(sessions, lambda session: describe_hardware(session.environment))
        facts["Software"] = describe_changes(sessions, lambda session: describe_software(session.environment))
    return facts


def _describe_earlier(training: Training) -> str:
    """Names the data set of a training and its terms, where others published the weights, and what to know of them."""
    about = "; ".join(filter(None, (training.license, training.recipe.get("weights"), training.recipe.get(WARNING))))
    return f"trained on {training.dataset}" + (f" ({about})" if about else "")


def draw_log(log: RunLog, *, best: ValidationRecord | None) -> dict[str, Markup]:
    """Draws the learning curves.

    Args:
      log: the log of the run.
      best: the validation record of the best checkpoint, which is marked.

    Returns:
      SVG by title; empty if the log has no training or no validation records.
    """
    if not log.train or not log.validation:
        return {}
    train = average_records(log.train)
    validation = [dataclasses.asdict(record) for record in log.validation]
    # A single evaluation needs no mark.
    marked = best.epoch if best and len(log.validation) > 1 else None

    def pair(name: str) -> list[Curve]:
        return [
            Curve(label, color, [record["epoch"] for record in records], [record[name] for record in records])
            for label, color, records in (("training", TRAIN, train), ("validation", VALIDATION, validation))
        ]

    epochs, rates = [record["epoch"] for record in train], [record["learning_rate"] for record in train]
    charts = {
        "Loss": draw_curves(pair("loss"), marked=marked),
        "Top-1 accuracy": draw_curves(pair("top1"), percent=True, marked=marked),
        "Learning rate": draw_curves([Curve("learning rate", INK, epochs, rates)], marked=marked),
    }
    return {title: Markup(svg) for title, svg in charts.items()}  # noqa: S704 drawn here


def average_records(records: Sequence[TrainRecord]) -> list[dict[str, float]]:
    """Averages neighbouring records, so that at most `CURVE_POINTS` are left."""
    size = math.ceil(len(records) / CURVE_POINTS)
    return [
        {
            name: statistics.fmean(getattr(record, name) for record in records[start : start + size])
            for name in ("epoch", "loss", "top1", "learning_rate")
        }
        for start in range(0, len(records), size)
    ]


def show_classes(evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    """Returns what the page shows of the classes: all of them, or the worst and the most frequent confusions.

    Its keys are `classes`, `ranked` (the same without classes that have no pictures, the worst first), `listed` (the
    classes of the list), `confusions`, `table` (the confusion matrix of few classes) and `map` (its image of more).
    """
    classes = describe_classes(evaluation, names)
    ranked = [classes[label] for label in evaluation.worst_classes()]
    return {
        "classes": classes,
        "ranked": ranked,
        "listed": classes if len(classes) <= LIST_LIMIT else ranked[:LIST_LIMIT],
        "confusions": evaluation.confusions()[:15],
        "table": evaluation.confusion.tolist() if len(names) <= TABLE_LIMIT else None,
        "map": confusion_map(evaluation.confusion, names) if TABLE_LIMIT < len(names) <= MAP_LIMIT else None,
    }


def describe_classes(evaluation: Evaluation, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a record for each class.

    Its keys are `name`, `count`, `top1` (None without pictures), `precision`, `f1` and `mistaken_for`: the three
    classes that are most often predicted instead, with their counts.
    """
    records, shares = [], measure_classes(evaluation.cells)
    for label, (name, (predicted, counts)) in enumerate(zip(names, evaluation.cells.rows(), strict=True)):
        count, wrong = int(counts.sum()), predicted != label
        predicted, counts = predicted[wrong], counts[wrong]
        frequent = np.argsort(-counts, kind="stable")[:3]
        records.append(
            {
                "name": name,
                "count": count,
                "top1": float(evaluation.per_class[label]) if count else None,
                "precision": float(shares["precision"][label]),
                "f1": float(shares["f1"][label]),
                "mistaken_for": [(names[predicted[place]], int(counts[place])) for place in frequent],
            }
        )
    return records


def confusion_map(confusion: Int64[np.ndarray, "n n"], names: Sequence[str]) -> dict[str, Any]:
    """Returns the confusion matrix as an image of one pixel per cell, and the numbers behind it.

    Classes that are confused with each other are adjacent. The opacity of a pixel is the cube root of the cell's share
    of its true class, so that one mistake in fifty is still 27% opaque.

    Returns:
      `png`, a data URL; `names` of the classes in the order of the rows; `totals`, pictures in each row; `cells`,
      [row, column, count] for each count above zero.
    """
    order = order_by_confusion(confusion)
    counts = confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Red for mistakes, blue for the diagonal.
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[...] = (224, 68, 52, 0)
    pixels[np.diag_indices(len(order))] = (72, 128, 232, 0)
    pixels[..., 3] = np.round(255 * np.cbrt(shares))
    rows, columns = counts.nonzero()
    return {
        "png": encode_png(Image.fromarray(pixels, "RGBA")),
        "names": [names[label] for label in order],
        "totals": counts.sum(axis=1).tolist(),
        "cells": [[int(row), int(column), int(counts[row, column])] for row, column in zip(rows, columns, strict=True)],
    }


def order_by_confusion(confusion: Int64[np.ndarray, "n n"]) -> list[int]:
    """Orders classes by hierarchical clustering, where classes are near if they are often confused with each other."""
    from scipy.cluster import hierarchy

    mistakes = (confusion + confusion.T).astype(np.float64)
    # SciPy takes the distances of all pairs as a vector: the upper triangle without the diagonal.
    distance = 1 / (1 + mistakes[np.triu_indices(len(confusion), 1)])
    return [int(label) for label in hierarchy.leaves_list(hierarchy.average(distance))]


def confident_mistakes(evaluation: Evaluation, split: Split) -> list[int]:
    """Returns the positions of the wrong predictions with the highest confidence, the most confident first."""
    wrong = np.flatnonzero(evaluation.predicted != split.labels)
    return [int(position) for position in wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:PICTURES]]


def evenly_spaced(count: int) -> list[int]:
    """Returns evenly spaced positions of a split: the same every time, and of many classes if it is sorted by class."""
    return [int(position) for position in np.unique(np.linspace(0, count - 1, PICTURES).round())]


def show_galleries(evaluation: Evaluation, dataset: Dataset, *, link: Link) -> dict[str, Any]:
    """Returns the galleries of the page by name, each a list of pictures as `show_pictures` returns them.

    `hardest` is a list of class names with such a list; `label_errors` is the number of likely wrong labels.
    """
    show = partial(show_pictures, dataset.validation, evaluation, link=link)
    errors = find_label_errors(evaluation)
    worst = evaluation.worst_classes()[:HARD_CLASSES]
    return {
        "mistakes": show(confident_mistakes(evaluation, dataset.validation)),
        "suspects": show([error.position for error in errors[:PICTURES]]),
        "label_errors": len(errors),
        "hardest": [(dataset.names[label], show(find_hardest(evaluation, label, HARDEST))) for label in worst],
        "examples": show(evenly_spaced(evaluation.count)),
    }


def show_pictures(
    split: Split, evaluation: Evaluation, positions: Sequence[int], *, link: Link
) -> list[dict[str, Any]]:
    """Returns pictures of a split as data URLs, with file, true and predicted class, and the confidence."""
    return [
        {
            "png": encode_png(make_thumbnail(np.asarray(split.shown[position]))),
            "file": split.file(position),
            "href": link(split.file(position)),
            "true": int(split.labels[position]),
            "predicted": int(evaluation.predicted[position]),
            "confidence": float(evaluation.confidence[position]),
        }
        for position in positions
    ]


def link_to(workdir: Workdir, file: str) -> str | None:
    """Returns the address of a picture's file as seen from the report; None if it is no file on this disk."""
    source = workdir.read_data_config().source
    path = Path(source, file)
    # Whatever prevents a look at the pictures, such as a share that is gone, must not prevent the report.
    if is_named(source) or not os.path.isfile(path):
        return None
    return urllib.parse.quote(os.fsencode(os.path.relpath(path, workdir.path)))


def make_thumbnail(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    """Returns a picture, made smaller if it is larger than a thumbnail."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


def encode_png(picture: Image.Image) -> str:
    """Returns a picture as a data URL, for a `src` attribute."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
