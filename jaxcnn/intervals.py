"""Metrics that weigh all classes alike, and 95% confidence intervals."""

import math
import statistics

import numpy as np
from jaxtyping import Float64, Int64

SAMPLES = 500
"""Resamples of the pictures behind an interval: its ends then vary by a few hundredths of its width."""

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


def measure_classes(confusion: Int64[np.ndarray, "classes classes"]) -> Shares:
    """Returns `precision`, `recall` and `f1` of each class; NaN for a class without pictures.

    The precision of a class that is never predicted is 0.

    Args:
      confusion: number of pictures by true and predicted class.
    """
    return _measure(confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0))


def measure_macro(confusion: Int64[np.ndarray, "classes classes"]) -> dict[str, float]:
    """Returns the means of `precision`, `recall` and `f1` over the classes that have pictures.

    The mean recall is the balanced accuracy.
    """
    return {name: float(np.nanmean(shares)) for name, shares in measure_classes(confusion).items()}


def bootstrap_intervals(confusion: Int64[np.ndarray, "classes classes"]) -> dict[str, tuple[float, float]]:
    """Returns the 95% confidence intervals of `measure_macro`, by resampling the pictures of each class (Efron 1979).

    The seed is fixed: the same pictures give the same intervals.
    """
    random, classes = np.random.default_rng(0), len(confusion)
    right, predicted = (np.zeros((SAMPLES, classes), np.int64) for _ in range(2))
    for label, row in enumerate(confusion):
        # Most cells are empty where there are many classes.
        cells = np.flatnonzero(row)
        if len(cells):
            drawn = random.multinomial(row.sum(), row[cells] / row.sum(), size=SAMPLES)
            predicted[:, cells] += drawn
            right[:, label] = drawn[:, cells == label].sum(axis=1)
    ends = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
    found = {}
    for name, shares in _measure(right, confusion.sum(axis=1), predicted).items():
        low, high = np.percentile(np.nanmean(shares, axis=1), ends)
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
