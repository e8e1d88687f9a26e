"""The record of an evaluation: `evaluation.json` in a workdir, and files like it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.classifier import Classifier
from jaxcnn.data import Dataset
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.metrics import Evaluation


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
        write_atomically(path, json.dumps(content, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(
            f"the evaluation cannot be written to {path}: {error.strerror}; run again to write it"
        ) from error


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

    Args:
      evaluation: the figures.
      names: class names.
      flipped: the same averaged with mirror images; only its summary is recorded.
    """
    # Examples of each class are the rows of the confusion matrix.
    bins = evaluation.reliability
    counts = evaluation.confusion.sum(axis=1)
    return {
        "count": evaluation.count,
        **evaluation.scalars(),
        **({} if flipped is None else {"with_flip": flipped.scalars()}),
        "per_class": [
            {"name": name, "count": int(count), "top1": _number(top1)}
            for name, count, top1 in zip(names, counts, evaluation.per_class, strict=True)
        ],
        "reliability": [
            {"count": int(count), "confidence": _number(confidence), "accuracy": _number(accuracy)}
            for count, confidence, accuracy in zip(bins.count, bins.confidence, bins.accuracy, strict=True)
        ],
        "confusion": evaluation.confusion.tolist(),
    }


def check_replaceable(path: Path) -> None:
    """Raises UserError if a file exists that is not an evaluation, such as a model or the settings of a run."""
    if path.exists() and not _is_record(path):
        raise UserError(
            f"the evaluation would overwrite {path}, which is something else; give the name of a new file, or of an "
            "earlier evaluation, with --output"
        )


def _is_record(path: Path) -> bool:
    """Returns whether a file is a record, or empty."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            # Models and archives are large: read on only if this may be a JSON object.
            start = file.read(1)
            return not start or (start == b"{" and "per_class" in json.loads(start + file.read()))
    except (OSError, ValueError):
        return False


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
