"""Metrics that weigh all classes alike, and 95% confidence intervals."""

import functools
import math
import statistics

import numpy as np
from jaxtyping import Float64, Int64

from jaxcnn.metrics import Cells

SAMPLES = 500
"""Resamples of the pictures behind an interval: its ends then vary by a few hundredths of its width."""

CHUNK = 50
"""Resamples whose metrics are in memory at once."""

LEVEL = 0.95
"""Share of the intervals that hold the true value."""


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Returns the 95% confidence interval of a share (Wilson 1927), which is also valid near 0 and 1."""
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    margin = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(center - margin, 0.0), min(center + margin, 1.0)


type Shares = dict[str, Float64[np.ndarray, "*samples classes"]]
"""Metrics of each class by name: shares from 0 to 1."""


def measure_classes(confusion: Cells) -> Shares:
    """Returns `precision`, `recall` and `f1` of each class; NaN for a class without pictures.

    The precision of a class that is never predicted is 0.

    Args:
      confusion: number of pictures by true and predicted class.
    """
    true, predicted = confusion.sum_by(confusion.true), confusion.sum_by(confusion.predicted)
    return _measure(confusion.diagonal(), true, predicted)


def measure_macro(confusion: Cells) -> dict[str, float]:
    """Returns the means of `precision`, `recall` and `f1` over the classes that have pictures.

    The mean recall is the balanced accuracy.
    """
    return {name: float(np.nanmean(shares)) for name, shares in measure_classes(confusion).items()}


@functools.lru_cache(maxsize=2)
def bootstrap_intervals(confusion: Cells) -> dict[str, tuple[float, float]]:
    """Returns the 95% confidence intervals of `measure_macro`, by resampling the pictures of each class (Efron 1979).

    The seed is fixed: the same pictures give the same intervals. They are kept for the next call, as record and report
    both have them: for 546,000 pictures of 21,841 classes they take 40 s.
    """
    random, true = np.random.default_rng(0), confusion.sum_by(confusion.true)
    right, predicted = (np.zeros((SAMPLES, confusion.classes), np.int32) for _ in range(2))
    for label, (columns, counts) in enumerate(confusion.rows()):
        if len(columns):
            drawn = random.multinomial(true[label], counts / true[label], size=SAMPLES)
            predicted[:, columns] += drawn.astype(np.int32)
            right[:, label] = drawn[:, columns == label].sum(axis=1)
    # A few resamples at a time: the metrics of all of them would take hundreds of MB for 21,841 classes.
    means: dict[str, list[float]] = {}
    for part in (slice(start, start + CHUNK) for start in range(0, SAMPLES, CHUNK)):
        for name, shares in _measure(right[part].astype(np.int64), true, predicted[part].astype(np.int64)).items():
            means.setdefault(name, []).extend(np.nanmean(shares, axis=1).tolist())
    ends = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
    found = {}
    for name, values in means.items():
        low, high = np.percentile(values, ends)
        found[name] = (float(low), float(high))
    return found


def _measure(
    right: Int64[np.ndarray, "*samples classes"],
    true: Int64[np.ndarray, " classes"],
    predicted: Int64[np.ndarray, "*samples classes"],
) -> Shares:
    """Returns the metrics of each class from its correct predictions, its pictures, and how often it is predicted."""
    absent = np.where(true > 0, 1.0, np.nan)
    return {
        "precision": absent * right / np.maximum(predicted, 1),
        "recall": absent * right / np.maximum(true, 1),
        "f1": absent * 2 * right / np.maximum(true + predicted, 1),
    }
