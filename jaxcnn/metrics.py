"""How good a classifier's logits are: one outcome for each example, summed up exactly once at the end.

Nothing is averaged batch by batch, so neither the size of the batches nor padding changes a result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

CALIBRATION_BINS = 15
"""As in Guo et al. 2017, "On Calibration of Modern Neural Networks"."""


class Outcomes(NamedTuple):
    """What became of some examples, in their order.

    Attributes:
      labels: the true classes.
      predicted: the classes with the highest logit; of several, the first.
      rank: how many classes the model puts before the true one; 0 where the prediction is right.
      confidence: the probability given to the predicted class.
      loss: cross-entropy in nats.
    """

    labels: Int32[np.ndarray, " n"]
    predicted: Int32[np.ndarray, " n"]
    rank: Int32[np.ndarray, " n"]
    confidence: Float64[np.ndarray, " n"]
    loss: Float64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Examples binned by confidence into equal parts of (0, 1], each with its upper end.

    Attributes:
      count: examples in each bin.
      confidence: their mean confidence; NaN in an empty bin.
      accuracy: the share predicted right; NaN in an empty bin.
    """

    count: Int64[np.ndarray, " bins"]
    confidence: Float64[np.ndarray, " bins"]
    accuracy: Float64[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of accuracy from confidence, weighted by count."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


@dataclass(frozen=True)
class Confusion:
    """How often one class was taken for another."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A classifier measured on every example of a split.

    Attributes:
      top1: share of examples whose class has the highest logit.
      top5: share of examples whose class is among the five highest (all of them, if there are fewer).
      loss: mean cross-entropy in nats.
      ece: expected calibration error of the top-1 confidence.
      count: examples.
      per_class: top-1 within each class; NaN for a class without an example.
      confusion: examples by [true, predicted] class.
      reliability: the bins behind `ece`.
      predicted: the prediction for each example, in the order of the split.
      confidence: the probability of that prediction.
    """

    top1: float
    top5: float
    loss: float
    ece: float
    count: int
    per_class: Float64[np.ndarray, " classes"]
    confusion: Int64[np.ndarray, "classes classes"]
    reliability: Reliability
    predicted: Int32[np.ndarray, " count"]
    confidence: Float64[np.ndarray, " count"]

    def scalars(self) -> dict[str, float]:
        """The figures that sum up the rest, by name."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, "ece": self.ece}

    def worst_classes(self) -> list[int]:
        """Classes that have examples, from the lowest accuracy to the highest."""
        order = np.argsort(self.per_class, kind="stable")  # NaN comes last
        return [int(each) for each in order if not np.isnan(self.per_class[each])]

    def confusions(self) -> list[Confusion]:
        """Pairs of classes that were confused, the most frequent first."""
        mistakes = self.confusion.copy()
        np.fill_diagonal(mistakes, 0)
        pairs = [Confusion(int(i), int(j), int(mistakes[i, j])) for i, j in zip(*mistakes.nonzero(), strict=True)]
        return sorted(pairs, key=lambda pair: -pair.count)


def score(
    logits: Float32[np.ndarray, "batch classes"],
    labels: Int32[np.ndarray, " batch"],
    mask: Bool[np.ndarray, " batch"],
) -> Outcomes:
    """The outcomes of a batch.

    Args:
      logits: finite where the mask is true.
      labels: in [0, classes).
      mask: false for padding, which is left out.
    """
    labels = labels[mask]
    values = logits[mask].astype(np.float64)  # float32 sums of 200 exponentials would lose the last digits
    own = np.take_along_axis(values, labels[:, None], axis=1)
    # Classes with equal logits rank by their number, as argmax has it. A model that gives all classes the same
    # is then right on one class, not on all.
    before = np.arange(values.shape[1]) < labels[:, None]
    rank = ((values > own) | ((values == own) & before)).sum(axis=1)
    shifted = values - values.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return Outcomes(
        labels=labels,
        predicted=values.argmax(axis=1).astype(np.int32),
        rank=rank.astype(np.int32),
        confidence=np.exp(-log_total),
        loss=log_total - np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0],
    )


def summarize(batches: Sequence[Outcomes], *, classes: int) -> Evaluation:
    """Sums up the outcomes of at least one example."""
    all_outcomes = Outcomes(*(np.concatenate(each) for each in zip(*batches, strict=True)))
    labels, predicted, rank, confidence, loss = all_outcomes
    cells = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    confusion = cells.reshape(classes, classes)
    reliability = measure_reliability(confidence, predicted == labels)
    return Evaluation(
        top1=float((rank == 0).mean()),
        top5=float((rank < 5).mean()),
        loss=math.fsum(loss) / len(loss),
        ece=reliability.error,
        count=len(labels),
        per_class=_ratio(confusion.diagonal(), confusion.sum(axis=1)),
        confusion=confusion,
        reliability=reliability,
        predicted=predicted,
        confidence=confidence,
    )


def measure_reliability(confidence: Float64[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]) -> Reliability:
    """Bins examples by confidence (Guo et al. 2017)."""
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, inner_edges, right=True)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    return Reliability(
        count=count,
        confidence=_ratio(np.bincount(bins, confidence, CALIBRATION_BINS), count),
        accuracy=_ratio(np.bincount(bins, correct, CALIBRATION_BINS), count),
    )


def _ratio(part: np.ndarray, whole: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Divides, giving NaN where there is nothing to divide by."""
    ratio: Float64[np.ndarray, " n"] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return ratio
