"""Compares two classifiers on the same pictures: McNemar's test, and the pictures on which they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Answer(NamedTuple):
    """The prediction for one picture.

    Attributes:
      true: name of the true class.
      predicted: name of the predicted class.
    """

    true: str
    predicted: str

    @property
    def is_right(self) -> bool:
        """Whether the prediction is the true class."""
        return self.true == self.predicted


class Disagreement(NamedTuple):
    """A picture for which one of two classifiers is right and the other wrong.

    Attributes:
      file: name of the picture.
      true: name of the true class.
      first: prediction of the first classifier.
      second: prediction of the second classifier.
    """

    file: str
    true: str
    first: str
    second: str


@dataclass(frozen=True)
class Pair:
    """Two classifiers on the pictures that both have predictions for.

    Attributes:
      pictures: number of these pictures.
      first_only: pictures on which only the first is right, in the order of their names.
      second_only: pictures on which only the second is right.
    """

    pictures: int
    first_only: tuple[Disagreement, ...]
    second_only: tuple[Disagreement, ...]

    @property
    def p_value(self) -> float:
        """Probability of a difference of this size or a larger one between two classifiers that are equally good."""
        return mcnemar(len(self.first_only), len(self.second_only))


def compare_answers(first: Mapping[str, Answer], second: Mapping[str, Answer]) -> Pair:
    """Compares two classifiers by their predictions, by the names of the pictures.

    Pictures that only one of them has a prediction for, or that have another true class in the other, are left out.
    """
    shared = [name for name in sorted(first.keys() & second.keys()) if first[name].true == second[name].true]
    differing = [
        Disagreement(name, first[name].true, first[name].predicted, second[name].predicted)
        for name in shared
        if first[name].is_right != second[name].is_right
    ]
    return Pair(
        pictures=len(shared),
        first_only=tuple(found for found in differing if found.first == found.true),
        second_only=tuple(found for found in differing if found.second == found.true),
    )


def mcnemar(first_only: int, second_only: int) -> float:
    """Returns the two-sided p-value of the exact test of McNemar 1947.

    Two classifiers that are equally good are equally often the only one that is right, so that the counts are drawn
    from a binomial distribution with probability one half.

    Args:
      first_only: pictures on which only the first classifier is right.
      second_only: pictures on which only the second classifier is right.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


def adjust(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values of several tests, so that 5% of all comparisons find a difference by chance (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
