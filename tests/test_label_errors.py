"""Confident learning: labels that were changed are found, others are left alone."""

import numpy as np

from jaxcnn.label_errors import find_hardest, find_label_errors
from jaxcnn.metrics import Evaluation, score, summarize


def evaluate(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    outcomes = score(logits.astype(np.float32), labels.astype(np.int32), np.ones(len(labels), bool))
    return summarize([outcomes], classes=logits.shape[1])


def test_changed_labels_are_found():
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 400)
    logits = random.normal(0, 0.7, (400, 4))
    logits[np.arange(400), truth] += 6
    labels = truth.copy()
    changed = random.choice(400, 20, replace=False)
    labels[changed] = (labels[changed] + 1) % 4
    found = find_label_errors(evaluate(logits, labels))
    assert {error.position for error in found[:20]} == set(changed.tolist())
    assert all(
        error.suggested == truth[error.position] and error.label == labels[error.position] for error in found[:20]
    )
    assert [error.margin for error in found] == sorted((error.margin for error in found), reverse=True)
    assert len(found) <= 24


def test_a_mistake_without_confidence_is_no_label_error():
    """The model is sure of class 0 where it is right, and hardly prefers it to class 1 where it is wrong."""
    logits = np.array([[6.0, 0.0]] * 5 + [[0.0, 6.0]] * 5 + [[0.2, 0.0]])
    assert find_label_errors(evaluate(logits, np.array([0] * 5 + [1] * 6))) == []
    logits[-1] = [8.0, 0.0]
    (error,) = find_label_errors(evaluate(logits, np.array([0] * 5 + [1] * 6)))
    assert (error.position, error.label, error.suggested) == (10, 1, 0)
    assert error.margin > 0.99


def test_the_definition_on_all_probabilities():
    """The published definition, on the whole matrix of probabilities, with as many classes as are kept."""
    random = np.random.default_rng(3)
    logits, labels = random.normal(0, 2, (300, 5)), random.integers(0, 5, 300)
    logits[np.arange(300), labels] += 2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    thresholds = np.array([shares[labels == label, label].mean() for label in range(5)])
    expected = {}
    for position, row in enumerate(shares):
        confident = [label for label in range(5) if row[label] >= thresholds[label]]
        if confident:
            best = max(confident, key=lambda label: row[label])
            if best != labels[position] and row[best] > row[labels[position]]:
                expected[position] = best
    found = find_label_errors(evaluate(logits, labels))
    assert {error.position: error.suggested for error in found} == expected
    assert len(expected) > 10


def test_the_hardest_have_the_highest_loss():
    evaluation = evaluate(np.array([[3.0, 0], [0, 3], [1, 0], [0, 1], [2, 0]]), np.array([0, 0, 0, 1, 0]))
    assert find_hardest(evaluation, 0, 3) == [1, 2, 4]
    assert find_hardest(evaluation, 1, 3) == [3]
