"""Finds pictures whose label is probably wrong, by confident learning.

C. Northcutt, L. Jiang, I. Chuang: "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021. A model
that was not trained on the pictures is confident that a picture belongs to a class if it gives the class at least the
mean probability that it gives it on the pictures labelled so. A picture whose most probable confident class is not its
label is a candidate.
"""

from dataclasses import dataclass

import numpy as np

from jaxcnn.metrics import Evaluation


@dataclass(frozen=True)
class LabelError:
    """A picture whose label is probably wrong.

    Attributes:
      position: of the picture in the split.
      label: its class index in the data.
      suggested: the class that it probably belongs to.
      margin: how much more probable the model finds that class, from 0 to 1.
    """

    position: int
    label: int
    suggested: int
    margin: float


def find_label_errors(evaluation: Evaluation) -> list[LabelError]:
    """Returns the pictures whose labels are probably wrong, the likeliest first.

    Only the most probable classes of each picture are considered, as many as the evaluation keeps.

    Args:
      evaluation: of pictures that the model was not trained on.
    """
    # The mean probability of each class on the pictures labelled so; a class without pictures suggests nothing.
    labels, classes = evaluation.labels, len(evaluation.per_class)
    own = np.exp(-evaluation.losses)
    count = np.bincount(labels, minlength=classes)
    threshold = np.where(count > 0, np.bincount(labels, own, classes) / np.maximum(count, 1), np.inf)
    # The most probable class of those that reach their threshold.
    confident = evaluation.shares >= threshold[evaluation.top]
    suggested = evaluation.top[np.arange(len(labels)), confident.argmax(axis=1)]
    share = evaluation.shares[np.arange(len(labels)), confident.argmax(axis=1)]
    found = np.flatnonzero(confident.any(axis=1) & (suggested != labels) & (share > own))
    margins = share[found] - own[found]
    return [
        LabelError(int(row), int(labels[row]), int(suggested[row]), float(margin))
        for row, margin in sorted(zip(found, margins, strict=True), key=lambda pair: -pair[1])
    ]


def find_hardest(evaluation: Evaluation, label: int, count: int) -> list[int]:
    """Returns the positions of the pictures of a class with the highest loss, the hardest first."""
    members = np.flatnonzero(evaluation.labels == label)
    return [int(row) for row in members[np.argsort(-evaluation.losses[members], kind="stable")][:count]]
