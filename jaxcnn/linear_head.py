"""The classifier of a frozen backbone: logistic regression on its features, solved to the optimum.

    head = fit_head(features, labels, classes=3)
    logits = features @ head.kernel + head.bias

Its regularisation is chosen by cross-validation on the same pictures, so that no others are looked at.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64

FOLDS = 5
"""Most folds of the cross-validation."""
STRENGTHS = tuple(10.0 ** (-exponent / 2) for exponent in range(13))
"""Strengths of the penalty that are tried, from the strongest on: 1 to 1e-6, for each picture and feature."""
STANDARDISED = (True, False)
"""Whether each feature is divided by its own deviation, or all of a group by a common one.

Dividing by a feature's own deviation penalises all features alike; otherwise those that vary little are penalised more.
Which is better depends on how far the pictures are from those that the backbone was trained on.
"""
LEAST_SHARE = 0.05
"""Least share of the common variance in the variance that a feature is divided by.

A feature may hardly vary in the training pictures and fire in another one. Divided by its own deviation alone, it would
decide there, with a loss that cross-validation on the same scales cannot see.
"""
MOST_DIRECTIONS = 1024
"""Directions in the space of the features that are kept: with more pictures, the principal components."""
MOST_LEFT_OUT = 1000
"""Pictures whose predictions are enough to choose by: with many pictures, not all folds are left out in turn."""
MAX_STEPS = 100
"""Most steps of L-BFGS from the optimum of one penalty to that of the next."""
PATIENCE = 2
"""Weaker penalties in a row that do not lower the loss before the search ends."""
_SEED = 0
_SMALLEST_SCALE = 1e-6

type Features = Float32[np.ndarray, "n features"]
type Labels = Int32[np.ndarray, " n"]
type Folds = Int64[np.ndarray, " n"]
type Groups = Int[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A linear classifier, and how it was chosen.

    Attributes:
      kernel: float32 [features, classes].
      bias: float32 [classes].
      standardised: whether features were divided by their own deviations, one of `STANDARDISED`.
      strength: strength of the penalty, one of `STRENGTHS`.
      loss: mean cross-entropy in nats of the pictures that were left out, by cross-validation; None if there was
        nothing to cross-validate with.
      top1: their top-1 accuracy, or None.
    """

    kernel: Float32[np.ndarray, "features classes"]
    bias: Float32[np.ndarray, " classes"]
    standardised: bool
    strength: float
    loss: float | None
    top1: float | None


def fit_head(
    features: Features,
    labels: Labels,
    *,
    classes: int,
    groups: Sequence[int] = (),
    alike: Groups | None = None,
    balanced: bool = False,
) -> LinearHead:
    """Fits multinomial logistic regression with an L2 penalty on scaled features.

    The scales are folded into the result, which takes the features as they are. Scales and strength of the penalty are
    those whose predictions for pictures that were left out have the lowest cross-entropy, by stratified
    cross-validation with up to `FOLDS` folds, of which as many are left out as have `MOST_LEFT_OUT` pictures. A class
    is never left out as a whole. If no class has a picture to leave out, the strongest penalty is used.

    Args:
      features: features of the training pictures, float32 [n, features].
      labels: classes, int32 [n], from 0 to classes - 1, at least two different ones.
      groups: widths of the groups of features that may share a scale, in their order; none: all are one group.
      classes: number of classes. One without pictures gets a logit that is never the highest.
      alike: the group of pictures that are nearly the same, for each picture; negative: it is in none. A group is left
        out as a whole: predictions for pictures that others give away would favour too weak a penalty.
      balanced: give all classes the same total weight, instead of all pictures.
    """
    weights, folds = _picture_weights(labels, balanced=balanced), assign_folds(labels, alike)
    candidates = [
        _fit_scaled(features, labels, weights, folds, classes=classes, groups=groups, standardised=choice)
        for choice in STANDARDISED
    ]
    # Without losses the first one is as good as any.
    return min(candidates, key=lambda head: math.inf if head.loss is None else head.loss)


def _fit_scaled(
    features: Features,
    labels: Labels,
    weights: Float[np.ndarray, " n"],
    folds: Folds,
    *,
    classes: int,
    groups: Sequence[int],
    standardised: bool,
) -> LinearHead:
    """Fits the head for one of `STANDARDISED`."""
    # On either scale a feature has a variance of about 1 on average.
    mean, own = features.mean(0, dtype=np.float64), features.var(0, dtype=np.float64)
    parts = np.split(own, list(itertools.accumulate(groups))[:-1])
    common = np.concatenate([np.full_like(part, part.mean()) for part in parts])
    share = LEAST_SHARE if standardised else 1.0
    scale = np.maximum(np.sqrt(own + share * (common - own)), _SMALLEST_SCALE)
    coordinates, basis = _reduce(_scaled(features, mean, scale))

    # The penalty, then the head of all pictures, along the same path from the strongest penalty on.
    penalties = [strength * features.shape[1] for strength in STRENGTHS]
    losses, hits = _cross_validate(coordinates, labels, weights, folds, penalties)
    best = int(np.argmin(losses)) if losses else 0
    models = _fit_path(coordinates, labels, weights, penalties)
    model = next(fitted for index, fitted in enumerate(models) if index == best)

    # Folded into one matrix and one vector.
    kernel, bias = _two_sided(model, classes)
    kernel = basis @ kernel / scale[:, None]
    return LinearHead(
        kernel=kernel.astype(np.float32),
        bias=(bias - mean @ kernel).astype(np.float32),
        standardised=standardised,
        strength=STRENGTHS[best],
        loss=losses[best] if losses else None,
        top1=hits[best] if hits else None,
    )


def _scaled(
    features: Features, mean: Float[np.ndarray, " features"], scale: Float[np.ndarray, " features"]
) -> Float[np.ndarray, "n features"]:
    """Subtracts the mean and divides by the scale, with one copy of the features in float64 in memory at a time."""
    rows: np.ndarray = features - mean
    rows /= scale
    return rows


def _reduce(
    rows: Float[np.ndarray, "n features"],
) -> tuple[Float[np.ndarray, "n rank"], Float[np.ndarray, "features rank"]]:
    """Rotates features into a smaller subspace, where the penalised optimum lies.

    It lies in the span of the pictures. With more than `MOST_DIRECTIONS` of them it is approximated: the penalty leaves
    little weight to directions in which pictures hardly vary.

    Returns:
      The coordinates, and the orthonormal basis that they are of: the rows are `coordinates @ basis.T`.
    """
    from sklearn.utils.extmath import randomized_svd

    count, features = rows.shape
    if min(count, features) > MOST_DIRECTIONS:
        basis = randomized_svd(rows, MOST_DIRECTIONS, random_state=_SEED)[2].T
    elif count < features:
        basis = np.linalg.qr(rows.T)[0]
    else:
        return rows, np.eye(features)
    return rows @ basis, basis


def _picture_weights(labels: Labels, *, balanced: bool) -> Float[np.ndarray, " n"]:
    """The weight of each picture, 1 on average."""
    if not balanced:
        return np.ones(len(labels))
    counts = np.bincount(labels)
    weights: np.ndarray = 1 / counts[labels]
    return weights / weights.mean()


def assign_folds(labels: Labels, alike: Groups | None = None) -> Folds:
    """Draws the fold that each picture is left out in, the same for the same labels; -1 if it is never left out.

    The `FOLDS` folds have as many pictures of a class as each other, or one more, unless pictures are alike. A class
    with fewer pictures than there are folds is left out of some. A class is never left out as a whole.

    Args:
      labels: classes of the pictures.
      alike: as in `fit_head`.
    """
    order = np.random.default_rng(_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    # The rank of each picture within its class; the classes start at different folds, which makes these equally large.
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - starts[labels[order]]
    found = np.empty(len(labels), np.int64)
    found[order] = (rank + starts[labels[order]]) % FOLDS
    # The pictures of a group follow the first one.
    if alike is not None:
        grouped = np.flatnonzero(alike >= 0)
        _, first, group = np.unique(alike[grouped], return_index=True, return_inverse=True)
        found[grouped] = found[grouped[first]][group]
    for label in np.flatnonzero(counts):
        members = found[labels == label]
        if (members == members[0]).all():
            found[labels == label] = -1
    return found


def _cross_validate(
    rows: Float[np.ndarray, "n rank"],
    labels: Labels,
    weights: Float[np.ndarray, " n"],
    folds: Folds,
    penalties: Sequence[float],
) -> tuple[list[float], list[float]]:
    """Loss and top-1 accuracy of pictures that were left out, for the penalties up to `PATIENCE` after the best.

    Where no picture is ever left out there is nothing to choose by: both are empty.
    """
    if (folds < 0).all():
        return [], []
    held_out = [folds == fold for fold in range(FOLDS) if (folds == fold).any()]
    # The last fold that counts is the one that makes them enough.
    totals = np.cumsum([left.sum() for left in held_out])
    held_out = held_out[: 1 + int(np.searchsorted(totals, MOST_LEFT_OUT))]
    paths = [_fit_path(rows[~left], labels[~left], weights[~left], penalties) for left in held_out]
    losses, hits = [], []
    for models in zip(*paths, strict=True):
        parts = [_measure(model, rows[left], labels[left]) for model, left in zip(models, held_out, strict=True)]
        loss, hit = (np.concatenate(values) for values in zip(*parts, strict=True))
        share = np.concatenate([weights[left] for left in held_out])
        losses.append(float(np.average(loss, weights=share)))
        hits.append(float(np.average(hit, weights=share)))
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    return losses, hits


def _fit_path(
    rows: Float[np.ndarray, "n rank"],
    labels: Labels,
    weights: Float[np.ndarray, " n"],
    penalties: Sequence[float],
) -> Iterator[Any]:
    """Yields the model of each penalty, the same object each time, each from the optimum before.

    The model is `sklearn.linear_model.LogisticRegression`. Its penalty is half the squared norm of the kernel, its loss
    C times the sum over the pictures.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(warm_start=True, max_iter=MAX_STEPS, tol=1e-5)
    for penalty in penalties:
        model.C = 1 / (penalty * len(rows))
        with warnings.catch_warnings():
            # So many steps from the optimum before are near enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows, labels, weights)
        yield model


def _measure(
    model: Any, rows: Float[np.ndarray, "n rank"], labels: Labels
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Cross-entropy in nats of each picture, and whether it is classified correctly."""
    from scipy.special import log_softmax

    kernel, bias = _two_sided(model, int(max(labels.max(), model.classes_.max())) + 1)
    logits = log_softmax(rows @ kernel + bias, axis=1)
    return -np.take_along_axis(logits, labels[:, None], axis=1)[:, 0], logits.argmax(1) == labels


def _two_sided(model: Any, classes: int) -> tuple[Float[np.ndarray, "rank classes"], Float[np.ndarray, " classes"]]:
    """Kernel and bias with a column for every class; scikit-learn has one column for two classes."""
    kernel, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
        kernel, bias = np.hstack([-kernel, kernel]) / 2, np.hstack([-bias, bias]) / 2
    # A class without pictures never has the highest logit, but a finite one.
    everything = np.zeros((len(kernel), classes)), np.full(classes, bias.min() - 20.0)
    everything[0][:, model.classes_] = kernel
    everything[1][model.classes_] = bias
    return everything
