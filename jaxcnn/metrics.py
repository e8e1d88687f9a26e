"""Metrics of a classifier: accuracy, loss, calibration and confusions, from the logits of batches.

`score` reduces each batch to one outcome per example, and `summarize` computes the metrics from all outcomes at once.
Nothing is averaged batch by batch, so neither the batch size nor padding changes a result.

    outcomes = [score(logits, labels, mask) for logits, labels, mask in batches]
    evaluation = summarize(outcomes, classes=10)
    print(evaluation.top1, evaluation.loss)
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

CALIBRATION_BINS = 15
"""Bins of the calibration error, as many as in Guo et al. 2017, "On Calibration of Modern Neural Networks"."""

KEPT = 5
"""Classes of each example whose probabilities are kept."""

MATRIX_LIMIT = 1000
"""Largest number of classes whose confusion matrix is recorded and drawn; with more, only `Evaluation.cells` are used.

The matrix of the 21,841 classes of ImageNet-21k would take 3.8 GB.
"""


class Outcomes(NamedTuple):
    """What a model made of n examples, in their order.

    Attributes:
      labels: true classes, int32 [n].
      predicted: classes with the highest logit, int32 [n]; the first one in case of a tie.
      rank: number of classes that the model ranks before the true one, int32 [n]; 0 for a correct prediction.
      confidence: softmax probability of the predicted class, float64 [n].
      loss: cross-entropy in nats, float64 [n].
      top: the `KEPT` most probable classes, or all if there are fewer, int32 [n, kept].
      shares: their softmax probabilities, float64 [n, kept].
    """

    labels: Int32[np.ndarray, " n"]
    predicted: Int32[np.ndarray, " n"]
    rank: Int32[np.ndarray, " n"]
    confidence: Float64[np.ndarray, " n"]
    loss: Float64[np.ndarray, " n"]
    top: Int32[np.ndarray, "n kept"]
    shares: Float64[np.ndarray, "n kept"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Examples binned by confidence: accuracy against confidence, as in a reliability diagram.

    The bins divide (0, 1] into equal intervals, which include their upper ends.

    Attributes:
      count: examples in each bin, int64 [bins].
      confidence: mean confidence of each bin, float64 [bins]; NaN if the bin is empty.
      accuracy: share of correct predictions in each bin, float64 [bins]; NaN if the bin is empty.
    """

    count: Int64[np.ndarray, " bins"]
    confidence: Float64[np.ndarray, " bins"]
    accuracy: Float64[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """Expected calibration error, from 0 to 1: the mean of |accuracy - confidence|, weighted by count."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


@dataclass(frozen=True)
class Confusion:
    """A pair of classes that the model confused.

    Attributes:
      true: class of the examples.
      predicted: class that the model predicted for them.
      count: number of these examples.
    """

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a confusion matrix that are not empty, by true class, then by predicted class.

    Attributes:
      classes: number of rows and columns of the matrix.
      true: true class of each cell, int64 [cells].
      predicted: predicted class of each cell, int64 [cells].
      count: examples in each cell, int64 [cells].
    """

    classes: int
    true: Int64[np.ndarray, " cells"]
    predicted: Int64[np.ndarray, " cells"]
    count: Int64[np.ndarray, " cells"]

    def sum_by(self, by: Int64[np.ndarray, " cells"]) -> Int64[np.ndarray, " classes"]:
        """Returns the examples of each true or predicted class; `by` is one of these attributes."""
        sums = np.zeros(self.classes, np.int64)
        np.add.at(sums, by, self.count)
        return sums

    def diagonal(self) -> Int64[np.ndarray, " classes"]:
        """Returns the examples of each class that are classified correctly."""
        right = self.true == self.predicted
        diagonal = np.zeros(self.classes, np.int64)
        diagonal[self.true[right]] = self.count[right]
        return diagonal

    def rows(self) -> Iterator[tuple[Int64[np.ndarray, " row"], Int64[np.ndarray, " row"]]]:
        """Yields the predicted classes and the counts of the cells of each true class."""
        ends = np.searchsorted(self.true, np.arange(self.classes + 1)).tolist()
        for start, end in itertools.pairwise(ends):
            yield self.predicted[start:end], self.count[start:end]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of a classifier on all examples of a split.

    Attributes:
      top1: top-1 accuracy, from 0 to 1.
      top5: top-5 accuracy, from 0 to 1; always 1 if there are five classes or fewer.
      loss: mean cross-entropy in nats.
      ece: expected calibration error of the predictions, from 0 to 1.
      count: number of examples.
      per_class: top-1 accuracy of each class, float64 [classes]; NaN for a class without examples.
      reliability: the bins that `ece` is computed from.
      predicted: predicted class of each example, in the order of the split, int32 [count].
      confidence: probability of each prediction, float64 [count].
      labels: true class of each example, int32 [count].
      losses: cross-entropy of each example in nats, float64 [count].
      top: the `KEPT` most probable classes of each example, or all if there are fewer, int32 [count, kept].
      shares: their probabilities, float64 [count, kept].
    """

    top1: float
    top5: float
    loss: float
    ece: float
    count: int
    per_class: Float64[np.ndarray, " classes"]
    reliability: Reliability
    predicted: Int32[np.ndarray, " count"]
    confidence: Float64[np.ndarray, " count"]
    labels: Int32[np.ndarray, " count"]
    losses: Float64[np.ndarray, " count"]
    top: Int32[np.ndarray, "count kept"]
    shares: Float64[np.ndarray, "count kept"]

    @functools.cached_property
    def cells(self) -> Cells:
        """The cells of the confusion matrix that are not empty: at most as many as examples."""
        classes = len(self.per_class)
        # Each pair of true and predicted class is one number.
        pairs, counts = np.unique(self.labels.astype(np.int64) * classes + self.predicted, return_counts=True)
        true, predicted = np.divmod(pairs, classes)
        return Cells(classes, true, predicted, counts.astype(np.int64))

    @functools.cached_property
    def confusion(self) -> Int64[np.ndarray, "classes classes"]:
        """Number of examples by true and predicted class, int64 [classes, classes].

        Computed when it is asked for. Use `cells` where there may be more than `MATRIX_LIMIT` classes.
        """
        matrix = np.zeros((self.cells.classes, self.cells.classes), np.int64)
        matrix[self.cells.true, self.cells.predicted] = self.cells.count
        return matrix

    def scalars(self) -> dict[str, float]:
        """The metrics that are one number, by name: `loss`, `top1`, `top5` and `ece`."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, "ece": self.ece}

    def worst_classes(self) -> list[int]:
        """Classes from the lowest accuracy to the highest, without classes that have no examples."""
        order = np.argsort(self.per_class, kind="stable")
        return [int(label) for label in order if not np.isnan(self.per_class[label])]

    def confusions(self) -> list[Confusion]:
        """Pairs of classes that the model confused, the most frequent first."""
        cells = zip(self.cells.true.tolist(), self.cells.predicted.tolist(), self.cells.count.tolist(), strict=True)
        confusions = [Confusion(true, predicted, count) for true, predicted, count in cells if true != predicted]
        return sorted(confusions, key=lambda pair: -pair.count)


def score(
    logits: Float32[np.ndarray, "batch classes"],
    labels: Int32[np.ndarray, " batch"],
    mask: Bool[np.ndarray, " batch"],
) -> Outcomes:
    """Computes the outcomes of a batch.

    Args:
      logits: float32 [batch, classes], finite where the mask is true.
      labels: true classes, int32 [batch], from 0 to classes - 1.
      mask: bool [batch]; false for padding, which has no outcome.

    Returns:
      One outcome for each example whose mask is true, in their order.
    """
    labels = labels[mask]
    # In float32, sums of 200 exponentials would lose the last digits.
    values = logits[mask].astype(np.float64)
    # Rank of the true class. Equal logits rank by class, as in argmax: a model that gives all classes the same logit is
    # then right on one class instead of on all.
    own = np.take_along_axis(values, labels[:, None], axis=1)
    before = np.arange(values.shape[1]) < labels[:, None]
    rank = ((values > own) | ((values == own) & before)).sum(axis=1)
    # Log softmax, shifted so that no exponential overflows.
    shifted = values - values.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    top = _find_largest(values, min(KEPT, values.shape[1]))
    return Outcomes(
        labels=labels,
        predicted=values.argmax(axis=1).astype(np.int32),
        rank=rank.astype(np.int32),
        confidence=np.exp(-log_total),
        loss=log_total - np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0],
        top=top.astype(np.int32),
        shares=np.exp(np.take_along_axis(shifted, top, axis=1) - log_total[:, None]),
    )


def _find_largest(values: Float64[np.ndarray, "n classes"], kept: int) -> Int64[np.ndarray, "n kept"]:
    """Returns where the largest values of each row are, the largest first; of equal values the first one.

    Sorting 21,841 classes would take a hundred times as long.
    """
    rest, rows = values.copy(), np.arange(len(values))
    found = np.empty((len(values), kept), np.int64)
    for rank in range(kept):
        found[:, rank] = rest.argmax(axis=1)
        rest[rows, found[:, rank]] = -np.inf
    return found


def summarize(batches: Sequence[Outcomes], *, classes: int) -> Evaluation:
    """Computes the metrics of a split.

    Args:
      batches: outcomes of all its examples, at least one, in batches of any size.
      classes: number of classes.
    """
    labels, predicted, rank, confidence, loss, top, shares = map(np.concatenate, zip(*batches, strict=True))
    correct = predicted == labels
    reliability = measure_reliability(confidence, correct)
    return Evaluation(
        top1=float((rank == 0).mean()),
        top5=float((rank < 5).mean()),
        loss=math.fsum(loss) / len(loss),
        ece=reliability.error,
        count=len(labels),
        per_class=_ratio(np.bincount(labels[correct], minlength=classes), np.bincount(labels, minlength=classes)),
        reliability=reliability,
        predicted=predicted,
        confidence=confidence,
        labels=labels,
        losses=loss,
        top=top,
        shares=shares,
    )


def measure_reliability(confidence: Float64[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]) -> Reliability:
    """Bins examples by confidence (Guo et al. 2017).

    Args:
      confidence: probability of the predicted class, float64 [n], from 0 to 1.
      correct: whether the prediction is right, bool [n].
    """
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, inner_edges, right=True)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    return Reliability(
        count=count,
        confidence=_ratio(np.bincount(bins, confidence, CALIBRATION_BINS), count),
        accuracy=_ratio(np.bincount(bins, correct, CALIBRATION_BINS), count),
    )


def _ratio(part: np.ndarray, whole: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Divides, with NaN where the divisor is 0."""
    ratio: Float64[np.ndarray, " n"] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return ratio
