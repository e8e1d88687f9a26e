"""The report of a run: one HTML page that needs no network, for people to read."""

import base64
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from jaxtyping import Int64, UInt8
from markupsafe import Markup
from PIL import Image
from scipy.cluster import hierarchy

from jaxcnn import models
from jaxcnn.calibration import Calibration
from jaxcnn.config import AugmentConfig, Config
from jaxcnn.data import Dataset, Split
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.metrics import Evaluation
from jaxcnn.run.charts import INK, TRAIN, VALIDATION, Curve, draw_curves, draw_reliability
from jaxcnn.run.cost import format_duration
from jaxcnn.run.describe import (
    counted,
    describe_augmentation,
    describe_hardware,
    describe_network,
    describe_optimizer,
    describe_precision,
    describe_software,
    describe_training,
)
from jaxcnn.run.metrics_log import RunLog, read_log
from jaxcnn.run.sessions import Session, read_sessions, tell
from jaxcnn.run.workdir import Workdir
from jaxcnn.state import init_variables

TABLE_LIMIT = 25
"""Classes up to which a confusion matrix is a table of numbers; above it is a map of colours."""
MAP_LIMIT = 1000
"""Classes up to which that map is worth its bytes."""
PICTURES = 24
"""Pictures in each of the two grids."""
THUMBNAIL = 128
"""Largest side in pixels of a picture on the page."""
CURVE_POINTS = 200
"""Points of a training curve; more would only show noise."""


def write_report(workdir: Path, evaluation: Evaluation, dataset: Dataset, *, calibration: Calibration) -> Path:
    """Writes `report.html` into the workdir of a run.

    Args:
      workdir: with the settings, the environment and the log of the run.
      evaluation: of the best checkpoint, calibrated, on `dataset.validation`.
      calibration: of that checkpoint.

    Returns:
      The path of the page.

    Raises:
      UserError: the workdir is none, or cannot be written.
    """
    path = workdir / "report.html"
    page = render(
        sessions=read_sessions(Workdir(workdir)),
        log=read_log(Workdir(workdir).metrics),
        evaluation=evaluation,
        calibration=calibration,
        dataset=dataset,
    )
    try:
        # A folder's name may hold bytes that are no text, which UTF-8 cannot write.
        write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from error
    return path


def render(
    *,
    sessions: Sequence[Session],
    log: RunLog,
    evaluation: Evaluation,
    calibration: Calibration,
    dataset: Dataset,
) -> str:
    """The page as HTML. Whatever comes from outside, such as a class name, is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxcnn.run"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    config, best = sessions[-1].config, log.validation_of(calibration.step)
    classes = describe_classes(evaluation, dataset.names)
    return templates.get_template(
        "report.html"
    ).render(
        dataset=dataset,
        evaluation=evaluation,
        calibration=calibration,
        pictures=counted(evaluation.count, "picture"),
        interval=wilson_interval(evaluation.top1, evaluation.count),
        facts=describe_run(sessions, log, dataset),
        epochs=config.epochs,
        augmented=any(each.config.augment != AugmentConfig() for each in sessions),
        label_smoothing=any(each.config.label_smoothing for each in sessions),
        log=log,
        best=best,
        charts=draw_log(log, best=best),
        reliability=Markup(draw_reliability(evaluation.reliability)),  # noqa: S704 our own drawing
        mean_confidence=float(evaluation.confidence.mean()),
        classes=classes,
        ranked=[classes[i] for i in evaluation.worst_classes()],
        confusions=evaluation.confusions()[:15],
        table=len(dataset.names) <= TABLE_LIMIT,
        map=confusion_map(evaluation.confusion, dataset.names)
        if TABLE_LIMIT < len(dataset.names) <= MAP_LIMIT
        else None,
        mistakes=show_pictures(dataset.validation, evaluation, confident_mistakes(evaluation, dataset.validation)),
        examples=show_pictures(dataset.validation, evaluation, spread(evaluation.count)),
        pixelated=dataset.validation.images.shape[1] < 96,
        settings=json.dumps(dataclasses.asdict(config), indent=2),
        environment=sessions[-1].environment,
    )


def describe_run(sessions: Sequence[Session], log: RunLog, dataset: Dataset) -> dict[str, str]:
    """The settings that matter, the time and the hardware, by heading."""
    config, steps = sessions[-1].config, len(dataset.train) // sessions[-1].config.batch_size
    facts = {
        "Data": f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.validation):,} validation pictures "
        f"in {len(dataset.names)} classes, {config.data.image_size} by {config.data.image_size} pixels",
        "Terms of the data": dataset.license,
        "Model": f"{describe_network(config.model)}, {count_parameters(config, len(dataset.names)):,} parameters, "
        + tell(sessions, lambda each: describe_precision(each.config.model, each.environment)),
        "Training": tell(sessions, lambda each: describe_training(each.config, steps_per_epoch=steps)),
        "Optimizer": tell(sessions, lambda each: describe_optimizer(each.config.optim)),
        "Augmentation": tell(sessions, lambda each: describe_augmentation(each.config.augment)),
    }
    if log.train:
        rate = statistics.median(record["images_per_second"] for record in log.train)
        facts["Time"] = f"{format_duration(log.seconds(config.batch_size))} in training steps, {rate:,.0f} pictures/s"
        facts["Finished"] = f"{datetime.fromtimestamp(log.train[-1]['time'], UTC):%d %B %Y, %H:%M} UTC"
    if all(each.environment for each in sessions):
        facts["Hardware"] = tell(sessions, lambda each: describe_hardware(each.environment))
        facts["Software"] = tell(sessions, lambda each: describe_software(each.environment))
    return facts


def count_parameters(config: Config, classes: int) -> int:
    """Trainable parameters of the model, from its shapes alone."""
    model = models.build(config.model, classes=classes)
    shapes = jax.eval_shape(
        lambda key: init_variables(key, model=model, image_size=config.data.image_size), jax.random.key(0)
    )
    return models.count_parameters(shapes["params"])


def draw_log(log: RunLog, *, best: dict[str, float] | None) -> dict[str, Markup]:
    """The learning curves by title; none if the log is empty.

    Args:
      best: the validation record of the best checkpoint, to be marked.
    """
    if not log.train or not log.validation:
        return {}
    train = average_records(log.train)
    marked = best["epoch"] if best and len(log.validation) > 1 else None

    def pair(name: str) -> list[Curve]:
        return [
            Curve(label, color, [each["epoch"] for each in records], [each[name] for each in records])
            for label, color, records in (("training", TRAIN, train), ("validation", VALIDATION, log.validation))
        ]

    rate = Curve("learning rate", INK, [each["epoch"] for each in train], [each["learning_rate"] for each in train])
    charts = {
        "Loss": draw_curves(pair("loss"), marked=marked),
        "Top-1 accuracy": draw_curves(pair("top1"), percent=True, marked=marked),
        "Learning rate": draw_curves([rate], marked=marked),
    }
    return {title: Markup(svg) for title, svg in charts.items()}  # noqa: S704 our own drawings


def average_records(records: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """At most `CURVE_POINTS` records, each the mean of as many neighbours."""
    size = math.ceil(len(records) / CURVE_POINTS)
    return [
        {
            name: statistics.fmean(each[name] for each in records[i : i + size])
            for name in ("epoch", "loss", "top1", "learning_rate")
        }
        for i in range(0, len(records), size)
    ]


def describe_classes(evaluation: Evaluation, names: Sequence[str]) -> list[dict[str, Any]]:
    """Each class with its accuracy and what it is most often taken for."""
    rows = []
    for i, name in enumerate(names):
        row = evaluation.confusion[i].copy()
        count, row[i] = int(row.sum()), 0
        taken = [int(j) for j in np.argsort(-row, kind="stable")[:3] if row[j]]
        rows.append(
            {
                "name": name,
                "count": count,
                "top1": float(evaluation.per_class[i]) if count else None,
                "row": evaluation.confusion[i].tolist(),
                "taken": [(names[j], int(row[j])) for j in taken],
            }
        )
    return rows


def confusion_map(confusion: Int64[np.ndarray, "n n"], names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix as a picture of one pixel for each cell, and the numbers behind it.

    Classes that are confused with one another stand together. A pixel's opacity is the cube root of the cell's
    share of its class: one mistake in fifty is still 27% opaque.
    """
    order = order_by_confusion(confusion)
    counts = confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[...] = (224, 68, 52, 0)
    pixels[np.diag_indices(len(order))] = (72, 128, 232, 0)
    pixels[..., 3] = np.round(255 * np.cbrt(shares))
    rows, columns = counts.nonzero()
    return {
        "png": encode_png(Image.fromarray(pixels, "RGBA")),
        "names": [names[i] for i in order],
        "totals": counts.sum(axis=1).tolist(),
        "cells": [[int(i), int(j), int(counts[i, j])] for i, j in zip(rows, columns, strict=True)],
    }


def order_by_confusion(confusion: Int64[np.ndarray, "n n"]) -> list[int]:
    """The classes in the order of a hierarchical clustering by how often they are confused."""
    mistakes = (confusion + confusion.T).astype(np.float64)
    np.fill_diagonal(mistakes, 0)
    distance = 1 / (1 + mistakes[np.triu_indices(len(confusion), 1)])
    return [int(each) for each in hierarchy.leaves_list(hierarchy.average(distance))]


def confident_mistakes(evaluation: Evaluation, split: Split) -> list[int]:
    """The pictures that were predicted wrong with the highest confidence."""
    wrong = np.flatnonzero(evaluation.predicted != split.labels)
    return [int(i) for i in wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:PICTURES]]


def spread(count: int) -> list[int]:
    """Positions spread evenly over a split: the same on every day, and of many classes where it is sorted by class."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, PICTURES).round())]


def show_pictures(split: Split, evaluation: Evaluation, positions: Sequence[int]) -> list[dict[str, Any]]:
    """Pictures of a split, each with its true class, the predicted one and the confidence in that."""
    return [
        {
            "png": encode_png(shrink(np.asarray(split.images[i]))),
            "true": int(split.labels[i]),
            "predicted": int(evaluation.predicted[i]),
            "confidence": float(evaluation.confidence[i]),
        }
        for i in positions
    ]


def shrink(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    """A picture no larger than a thumbnail."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


def encode_png(picture: Image.Image) -> str:
    """A picture as the value of a `src` attribute."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a share (Wilson 1927), which holds near 0 and 1 too."""
    z = statistics.NormalDist().inv_cdf(0.975)
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    margin = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return center - margin, center + margin
