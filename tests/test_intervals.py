"""Metrics by class equal those that scikit-learn computes, and intervals hold the true value as often as they say."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from jaxcnn.intervals import bootstrap_intervals, measure_classes, measure_macro, wilson_interval
from jaxcnn.metrics import Cells


def make_confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Cells:
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return cells_of(confusion)


def cells_of(confusion: np.ndarray) -> Cells:
    true, predicted = confusion.nonzero()
    return Cells(len(confusion), true, predicted, confusion[true, predicted])


@given(count=st.integers(1, 10_000), right=st.floats(0, 1))
def test_interval_is_wilsons(count, right):
    correct = round(right * count)
    expected = binomtest(correct, count).proportion_ci(method="wilson")
    assert wilson_interval(correct / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_metrics_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels = random.choice(6, 300, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    predicted = np.where(random.random(300) < 0.6, labels, random.integers(0, 4, 300))
    confusion = make_confusion(labels, predicted, 6)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, zero_division=0)
    found = measure_classes(confusion)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(found[name], expected)
        assert measure_macro(confusion)[name] == pytest.approx(expected.mean())
    assert measure_macro(confusion)["recall"] == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_a_class_without_pictures_counts_for_nothing():
    whole = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    confusion, filled = cells_of(whole), cells_of(whole[:2, :2])
    assert np.isnan(measure_classes(confusion)["recall"][2])
    assert measure_macro(confusion) == pytest.approx(measure_macro(filled))
    assert bootstrap_intervals(confusion)["recall"] == pytest.approx(bootstrap_intervals(filled)["recall"])


def test_intervals_hold_the_true_value_about_as_often_as_they_say():
    """The balanced accuracy of a model with known recalls, measured on 100 samples of 120 pictures."""
    random = np.random.default_rng(1)
    recalls, counts = np.array([0.9, 0.7, 0.5]), np.array([60, 40, 20])
    held = 0
    for _ in range(100):
        right = random.binomial(counts, recalls)
        confusion = cells_of(np.diag(right) + np.diag(counts - right)[:, [1, 2, 0]])
        low, high = bootstrap_intervals(confusion)["recall"]
        held += low <= recalls.mean() <= high
    assert 88 <= held <= 99


def test_intervals_are_the_same_every_time():
    confusion = cells_of(np.array([[30, 5], [7, 20]]))
    found = bootstrap_intervals(confusion)
    assert found == bootstrap_intervals(dataclasses.replace(confusion))  # Another object, which is not cached
    assert all(low < measure_macro(confusion)[name] < high for name, (low, high) in found.items())
