"""The record of an evaluation: `evaluation.json` in a workdir, and files like it."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.classifier import Classifier
from jaxcnn.csv_line import csv_line
from jaxcnn.data import Dataset, Split
from jaxcnn.disk import remedy, write_atomically
from jaxcnn.errors import UserError
from jaxcnn.intervals import bootstrap_intervals, measure_classes, measure_macro, wilson_interval
from jaxcnn.metrics import MATRIX_LIMIT, Evaluation

CONFUSIONS = 10_000
"""Most confusions in a record of more than `MATRIX_LIMIT` classes."""


def write_evaluation(
    evaluation: Evaluation,
    path: Path,
    *,
    names: Sequence[str],
    about: Mapping[str, Any] | None = None,
    flipped: Evaluation | None = None,
) -> None:
    """Writes an evaluation as JSON.

    Args:
      evaluation: its figures.
      path: the file, replaced as a whole.
      names: class names.
      about: what was measured, from `describe_measured`.
      flipped: the same averaged with mirror images.

    Raises:
      UserError: the file cannot be written.
    """
    content = {**(about or {}), **to_record(evaluation, names=names, flipped=flipped)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, allow_nan=False) + "\n")
    except OSError as error:
        advice = f"{remedy(error) or 'fix that'} and run again to write it"
        raise UserError(f"the evaluation cannot be written to {path}: {error.strerror}; {advice}") from error


def describe_measured(classifier: Classifier, *, dataset: Dataset, split: str) -> dict[str, Any]:
    """Returns the part of a record that says which model was measured on what."""
    return {
        "model": str(classifier.path),
        "step": classifier.step,
        "temperature": classifier.temperature,
        "dataset": dataset.name,
        "split": split,
    }


def to_record(evaluation: Evaluation, *, names: Sequence[str], flipped: Evaluation | None = None) -> dict[str, Any]:
    """Returns the figures as JSON values; one that is undefined, such as the accuracy of an empty class, is null.

    `confusion` is the confusion matrix. With more than `MATRIX_LIMIT` classes, the record has `confusions` instead: the
    most frequent ones, each as true class, predicted class and number of examples.

    Args:
      evaluation: the figures.
      names: class names.
      flipped: the same averaged with mirror images; only its summary is recorded.
    """
    bins, by_class = evaluation.reliability, measure_classes(evaluation.cells)
    counts = evaluation.cells.sum_by(evaluation.cells.true)
    confusion = (
        {"confusion": evaluation.confusion.tolist()}
        if len(names) <= MATRIX_LIMIT
        else {"confusions": [dataclasses.astuple(pair) for pair in evaluation.confusions()[:CONFUSIONS]]}
    )
    return {
        "count": evaluation.count,
        **evaluation.scalars(),
        **measure_all(evaluation),
        **({} if flipped is None else {"with_flip": flipped.scalars()}),
        "per_class": [
            {
                "name": name,
                "count": int(count),
                "top1": _number(top1),
                **{key: _number(shares[label]) for key, shares in by_class.items()},
            }
            for label, (name, count, top1) in enumerate(zip(names, counts, evaluation.per_class, strict=True))
        ],
        "reliability": [
            {"count": int(count), "confidence": _number(confidence), "accuracy": _number(accuracy)}
            for count, confidence, accuracy in zip(bins.count, bins.confidence, bins.accuracy, strict=True)
        ],
        **confusion,
    }


def measure_all(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the metrics that weigh all classes alike, and under `intervals` the 95% interval of each share.

    They are `balanced_accuracy`, which is the mean recall, and the means of `precision`, `recall` and `f1`.
    """
    macro = measure_macro(evaluation.cells)
    intervals = bootstrap_intervals(evaluation.cells)
    shares = {"top1": evaluation.top1, "top5": evaluation.top5}
    return {
        "balanced_accuracy": macro["recall"],
        **macro,
        "intervals": {
            **{name: wilson_interval(share, evaluation.count) for name, share in shares.items()},
            "balanced_accuracy": intervals["recall"],
            **intervals,
        },
    }


PREDICTIONS = ("file", "true_class", "predicted_class", "probability", "true_probability", "loss")
"""First columns of a file of predictions; `class_2`, `probability_2` and so on follow."""


def predictions_path(evaluation: Path) -> Path:
    """Returns the file of predictions beside an evaluation: `predictions.csv` beside `evaluation.json`."""
    stem = evaluation.stem
    name = stem.replace("evaluation", "predictions", 1) if stem.startswith("evaluation") else f"{stem}-predictions"
    return evaluation.with_name(f"{name}.csv")


def write_predictions(evaluation: Evaluation, path: Path, *, names: Sequence[str], splits: Sequence[Split]) -> None:
    """Writes what the model says about each picture as CSV.

    Args:
      evaluation: of the pictures.
      path: the file, replaced as a whole.
      names: class names.
      splits: the pictures in the order of the evaluation.

    Raises:
      UserError: the file cannot be written.
    """
    kept = evaluation.top.shape[1]
    further = [f"{kind}_{rank}" for rank in range(2, kept + 1) for kind in ("class", "probability")]
    lines = [csv_line([*PREDICTIONS, *further])]
    files = (split.file(row) for split in splits for row in range(len(split)))
    for number, file in enumerate(files):
        ranked = zip(evaluation.top[number], evaluation.shares[number], strict=True)
        (predicted, share), *others = [(names[label], f"{share:.6f}") for label, share in ranked]
        loss = float(evaluation.losses[number])
        true = names[evaluation.labels[number]]
        own = f"{math.exp(-loss):.6f}"
        values = [file, true, predicted, share, own, f"{loss:.6f}", *itertools.chain.from_iterable(others)]
        lines.append(csv_line(values))
    try:
        write_atomically(path, "".join(lines).encode("utf-8", "surrogateescape"))
    except OSError as error:
        advice = f"{remedy(error) or 'fix that'} and run again to write them"
        raise UserError(f"the predictions cannot be written to {path}: {error.strerror}; {advice}") from error


def check_replaceable(path: Path) -> None:
    """Raises UserError if a file exists that is not an evaluation, such as a model or the settings of a run."""
    if path.exists() and not _is_record(path):
        raise UserError(
            f"the evaluation would overwrite {path}, which is something else; give the name of a new file, or of an "
            "earlier evaluation, with --output"
        )
    predictions = predictions_path(path)
    if predictions.exists() and not _are_predictions(predictions):
        raise UserError(
            f"the predictions would overwrite {predictions}, which is something else; give another --output"
        )


def _are_predictions(path: Path) -> bool:
    """Returns whether a file has predictions, or is empty."""
    start = ",".join(PREDICTIONS).encode()
    try:
        with path.open("rb") as file:
            return file.read(len(start)) in (b"", start)
    except OSError:
        return False


def _is_record(path: Path) -> bool:
    """Returns whether a file is a record, or empty."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            # Models and archives are large: read on only if this may be a JSON object.
            start = file.read(1)
            return not start or (start == b"{" and "per_class" in json.loads(start + file.read()))
    except (OSError, ValueError, RecursionError):
        return False


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
