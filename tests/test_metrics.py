"""Metrics: the same as scikit-learn's, for any batches, and well-defined where scikit-learn's are not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from jaxcnn.metrics import Confusion, measure_reliability, score, summarize


def evaluate(logits, labels):
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.int32)
    outcomes = score(logits, labels, np.ones(len(labels), bool))
    return summarize([outcomes], classes=logits.shape[1])


def random_examples(seed, *, count, classes, scale=3.0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(count, classes))).astype(np.float32)
    return logits, rng.integers(0, classes, count).astype(np.int32)


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 80), classes=st.integers(2, 12), scale=st.floats(0.01, 60))
def test_agrees_with_scikit_learn(seed, count, classes, scale):
    logits, labels = random_examples(seed, count=count, classes=classes, scale=scale)
    measured, every = evaluate(logits, labels), np.arange(classes)

    # scikit-learn takes two classes only as binary labels with one score.
    def top_k(k):
        return (
            1.0 if k >= classes else np.mean([y in np.argsort(-row)[:k] for y, row in zip(labels, logits, strict=True)])
        )

    if classes > 2:
        assert measured.top1 == top_k_accuracy_score(labels, logits, k=1, labels=every)
    if classes > 5:
        assert measured.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every), abs=1e-12)
    assert measured.top1 == top_k(1)
    assert measured.top5 == pytest.approx(top_k(5), abs=1e-12)
    probabilities = softmax(logits)
    if probabilities.min() > 1e-15:  # Below, scikit-learn clips.
        assert measured.loss == pytest.approx(log_loss(labels, probabilities, labels=every), rel=1e-9)
    np.testing.assert_array_equal(measured.confusion, confusion_matrix(labels, logits.argmax(1), labels=every))
    np.testing.assert_array_equal(measured.predicted, logits.argmax(1))
    np.testing.assert_allclose(measured.confidence, probabilities.max(1), rtol=1e-12)
    assert measured.count == count


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 40),
    batch=st.integers(1, 45),
    padding=st.sampled_from([0.0, np.nan, np.inf]),
)
def test_batches_and_padding_change_nothing(seed, count, batch, padding):
    logits, labels = random_examples(seed, count=count, classes=7)
    whole = evaluate(logits, labels)
    batches = []
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        missing = batch - len(labels[part])
        padded_logits = np.concatenate([logits[part], np.full((missing, 7), padding, np.float32)])
        padded_labels = np.concatenate([labels[part], np.zeros(missing, np.int32)])
        batches.append(score(padded_logits, padded_labels, np.arange(batch) < batch - missing))
    parts = summarize(batches, classes=7)
    assert parts.scalars() == whole.scalars()
    assert parts.count == whole.count
    for name in ("per_class", "confusion", "predicted", "confidence"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_the_mask_can_leave_out_any_example():
    logits, labels = random_examples(0, count=9, classes=4)
    mask = np.array([True, False, True, True, False, False, True, True, False])
    masked = summarize([score(logits, labels, mask)], classes=4)
    kept = evaluate(logits[mask], labels[mask])
    assert masked.scalars() == kept.scalars()
    assert masked.count == kept.count == 5


def test_a_tie_goes_to_the_first_class():
    measured = evaluate(np.zeros((10, 10)), np.arange(10))
    assert (measured.top1, measured.top5) == (0.1, 0.5)
    np.testing.assert_array_equal(measured.predicted, np.zeros(10))
    assert measured.loss == pytest.approx(math.log(10), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_top5_of_few_classes_is_certain(classes):
    assert evaluate(*random_examples(1, count=20, classes=classes)).top5 == 1


def test_huge_logits_do_not_overflow():
    measured = evaluate([[3e38, -3e38], [3e38, -3e38]], [0, 1])
    assert measured.top1 == 0.5
    assert measured.loss == pytest.approx(3e38, rel=1e-6)
    np.testing.assert_array_equal(measured.confidence, [1, 1])


def test_a_class_without_examples_has_no_accuracy():
    measured = evaluate([[2, 1, 0], [0, 1, 2], [2, 1, 0]], [0, 2, 2])
    np.testing.assert_array_equal(measured.per_class, [1, np.nan, 0.5])
    assert measured.worst_classes() == [2, 0]


def test_confusion_is_true_by_predicted():
    measured = evaluate(np.eye(3)[[1, 1, 2, 0]], [0, 0, 1, 0])
    np.testing.assert_array_equal(measured.confusion, [[1, 2, 0], [0, 0, 1], [0, 0, 0]])
    assert measured.confusions() == [Confusion(true=0, predicted=1, count=2), Confusion(true=1, predicted=2, count=1)]
    assert measured.confusion[0, 0] == 1  # The matrix itself is not changed.


def test_classes_as_bad_as_each_other_stay_in_order():
    labels = np.arange(60)
    measured = evaluate(np.eye(60)[np.where(labels % 3, labels, 0)], labels)
    assert measured.worst_classes() == [*range(3, 60, 3), 0, *(label for label in range(60) if label % 3)]


def test_calibration_error_of_a_case_worked_by_hand():
    # Confidences .62 and .66 share the bin (.6, .6667]: mean .64, half of them right: gap .14.
    # .99 is alone in (.9333, 1] and wrong: gap .99.
    reliability = measure_reliability(np.array([0.62, 0.66, 0.99]), np.array([True, False, False]))
    assert reliability.error == pytest.approx((2 * 0.14 + 0.99) / 3, abs=1e-12)
    assert list(reliability.count.nonzero()[0]) == [9, 14]
    np.testing.assert_allclose(reliability.confidence[[9, 14]], [0.64, 0.99])
    np.testing.assert_allclose(reliability.accuracy[[9, 14]], [0.5, 0])
    assert np.isnan(reliability.accuracy[0])


def test_bins_include_their_upper_end():
    reliability = measure_reliability(np.array([1 / 15, 1 / 15 + 1e-9, 1.0]), np.ones(3, bool))
    assert list(reliability.count.nonzero()[0]) == [0, 1, 14]
    assert list(reliability.count[[0, 1, 14]]) == [1, 1, 1]


def test_calibration_error_averages_gaps_that_point_both_ways():
    reliability = measure_reliability(np.array([0.5, 0.5, 0.9, 0.9]), np.array([True, True, False, False]))
    assert reliability.error == pytest.approx((0.5 + 0.9) / 2)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 60))
def test_a_perfect_model_has_no_error(seed, count):
    labels = np.random.default_rng(seed).integers(0, 4, count)
    measured = evaluate(1000 * np.eye(4)[labels], labels)
    assert measured.scalars() == {"loss": 0, "top1": 1, "top5": 1, "ece": 0}
    assert measured.confusions() == []


def test_very_many_classes_take_no_matrix_until_it_is_asked_for():
    labels = np.array([21_840, 3, 3, 21_840], np.int32)
    logits = np.zeros((4, 21_841), np.float32)
    logits[np.arange(4), [21_840, 7, 7, 0]] = 1
    measured = summarize([score(logits, labels, np.ones(4, bool))], classes=21_841)
    assert "confusion" not in vars(measured)
    assert measured.confusions() == [
        Confusion(true=3, predicted=7, count=2),
        Confusion(true=21_840, predicted=0, count=1),
    ]
    assert (measured.per_class[3], measured.per_class[21_840]) == (0, 0.5)
    assert "confusion" not in vars(measured)
