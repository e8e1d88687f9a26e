"""The exact head: its optimum, its folds, small classes, and what it never looks at."""

import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from jaxcnn import linear_head
from jaxcnn.linear_head import FOLDS, STRENGTHS, assign_folds, fit_head


def pictures_of(counts, *, features=6, spread=1.0, seed=0):
    """Features around one centre for each class, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    centres = random.normal(0, 2, (len(counts), features))
    rows = centres[labels] + random.normal(0, spread, (len(labels), features))
    return rows.astype(np.float32) * 3 + 5, labels


def scale(rows, standardised):
    own, common = rows.var(0), rows.var(0).mean()
    deviations = np.sqrt(0.95 * own + 0.05 * common) if standardised else np.sqrt(common)
    return (rows - rows.mean(0)) / deviations / np.sqrt(rows.shape[1])


def objective(parameters, rows, labels, weights, strength, standardised):
    """Mean cross-entropy and penalty on scaled features, written down anew."""
    scaled = scale(rows, standardised)
    kernel, bias = np.split(parameters.reshape(-1, labels.max() + 1), [-1])
    loss = -log_softmax(scaled @ kernel + bias, axis=1)[np.arange(len(labels)), labels]
    return (weights * loss).mean() + strength / 2 * (kernel**2).sum()


@pytest.mark.run
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("features", [3, 40], ids=["few features", "more features than pictures"])
def test_the_head_is_the_optimum_on_scaled_features(features, balanced):
    rows, labels = pictures_of([14, 9, 7], features=features, spread=4)
    rows[:, 1] *= 5
    head = fit_head(rows, labels, classes=3, balanced=balanced)
    weights = 10 / np.bincount(labels)[labels] if balanced else np.ones(len(labels))
    start = np.zeros((features + 1) * 3)
    given = (rows, labels, weights, head.strength, head.standardised)
    found = minimize(objective, start, given, options={"maxiter": 2000})
    scaled = scale(rows, head.standardised)
    kernel, bias = np.split(found.x.reshape(-1, 3), [-1])
    np.testing.assert_allclose(
        softmax(rows @ head.kernel + head.bias, axis=1), softmax(scaled @ kernel + bias, axis=1), atol=2e-3
    )


def test_two_classes_are_solved_like_several():
    rows, labels = pictures_of([20, 20], spread=3)
    head = fit_head(rows, labels, classes=2)
    # A single column with C is the two columns with half of it.
    found = minimize(objective, np.zeros(14), (rows, labels, np.ones(40), 2 * head.strength, head.standardised))
    scaled = scale(rows, head.standardised)
    kernel, bias = np.split(found.x.reshape(-1, 2), [-1])
    difference = (rows @ head.kernel + head.bias) - (scaled @ kernel + bias)
    np.testing.assert_allclose(difference[:, 0], difference[:, 1], atol=0.05)


def test_the_penalty_grows_with_the_noise():
    clear, noisy = (fit_head(*pictures_of([30, 30], spread=spread), classes=2) for spread in (0.5, 20))
    assert noisy.strength > clear.strength
    assert clear.top1 == 1
    assert 0.2 < noisy.top1 < 0.8
    assert noisy.loss == pytest.approx(np.log(2), abs=0.15)


@pytest.mark.parametrize("counts", [[1, 1], [2, 2], [1, 30], [2, 9, 1]])
def test_small_classes_are_fitted(counts):
    rows, labels = pictures_of(counts, spread=0.1)
    head = fit_head(rows, labels, classes=len(counts))
    assert head.strength in STRENGTHS
    np.testing.assert_array_equal((rows @ head.kernel + head.bias).argmax(1), labels)


def test_with_one_picture_for_each_class_there_is_nothing_to_cross_validate_with():
    rows, labels = pictures_of([1, 1, 1])
    head = fit_head(rows, labels, classes=3)
    assert (head.strength, head.loss, head.top1) == (STRENGTHS[0], None, None)
    # One picture that can be left out is enough.
    rows, labels = pictures_of([1, 2])
    assert isinstance(fit_head(rows, labels, classes=2).loss, float)


def test_a_class_without_pictures_is_never_predicted():
    rows, labels = pictures_of([9, 9, 9])
    kept = labels != 1
    head = fit_head(rows[kept], labels[kept], classes=4)
    assert head.kernel.shape == (6, 4)
    assert set((rows @ head.kernel + head.bias).argmax(1)) == {0, 2}


def test_folds_are_stratified_and_leave_single_pictures_in():
    labels = np.repeat([0, 1, 2, 3], [11, 1, 3, 10]).astype(np.int32)
    folds = assign_folds(labels)
    np.testing.assert_array_equal(folds, assign_folds(labels))
    assert folds[labels == 1] == [-1]
    for label in (0, 2, 3):
        counts = np.bincount(folds[labels == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1


def test_pictures_that_are_alike_are_left_out_together():
    labels = np.repeat([0, 1, 2], [12, 8, 3]).astype(np.int32)
    alike = np.full(23, -1, np.int32)
    alike[[0, 5, 11, 13]] = 7
    alike[[1, 2]] = 3
    alike[20:] = 4
    folds, plain = assign_folds(labels, alike), assign_folds(labels)
    assert len(set(plain[alike == 7])) > 1
    for group in (3, 7):
        assert len(set(folds[alike == group])) == 1
        assert folds[alike == group][0] >= 0
    np.testing.assert_array_equal(folds[alike < 0], plain[alike < 0])
    # A class of nothing but one group cannot be learned without it.
    assert set(folds[alike == 4]) == {-1}


def test_a_feature_that_hardly_varied_does_not_decide_where_it_fires(monkeypatch):
    monkeypatch.setattr(linear_head, "STANDARDISED", (True,))
    rows, labels = pictures_of([20, 20], features=8, spread=6)
    rows[:, 3] = 1e-4 * (np.arange(40) % 7 + labels)
    head = fit_head(rows, labels, classes=2)
    fired = rows.copy()
    fired[:, 3] = 3 * rows.std(0).max()
    change = (fired - rows) @ head.kernel
    assert np.abs(change).max() < 0.1 * np.abs((rows - rows.mean(0)) @ head.kernel).max()


def test_copies_do_not_weaken_the_penalty():
    rows, labels = pictures_of([15, 15], features=20, spread=20)
    copies, alike = np.tile(rows, (3, 1)), np.tile(np.arange(30), 3)
    fitted = fit_head(rows, labels, classes=2)
    misled, found = (fit_head(copies, np.tile(labels, 3), classes=2, alike=given) for given in (None, alike))
    assert found.strength >= fitted.strength > misled.strength
    assert found.loss == pytest.approx(fitted.loss, abs=0.1)
    assert misled.loss < fitted.loss - 0.3


def test_groups_of_features_share_a_scale(monkeypatch):
    monkeypatch.setattr(linear_head, "STANDARDISED", (False,))
    rows, labels = pictures_of([12, 12], spread=6)
    one = fit_head(rows, labels, classes=2)
    assert np.array_equal(fit_head(rows, labels, classes=2, groups=(6,)).kernel, one.kernel)
    # The units of a group change nothing, if it has its own scale.
    units = np.array([1, 1, 1000, 1000, 1000, 1000], np.float32)
    found, same = (fit_head(x, labels, classes=2, groups=(2, 4)) for x in (rows, rows * units))
    np.testing.assert_allclose(same.kernel * units[:, None], found.kernel, rtol=1e-3, atol=1e-6)
    assert not np.allclose(found.kernel, one.kernel)


class Reduced(Exception):
    """The features are scaled, with so many copies of them in memory at the peak."""


def test_features_are_copied_once_at_a_time(monkeypatch):
    """The features of 100,000 pictures take 4 GB in float64."""

    def reduce(scaled):
        raise Reduced(tracemalloc.get_traced_memory()[1] / scaled.nbytes)

    rows, labels = pictures_of([500, 500], features=300)
    monkeypatch.setattr(linear_head, "_reduce", reduce)
    tracemalloc.start()
    with pytest.raises(Reduced) as found:
        fit_head(rows, labels, classes=2)
    tracemalloc.stop()
    assert found.value.args[0] < 1.5


def test_many_pictures_are_fitted_in_their_principal_components(monkeypatch):
    rows, labels = pictures_of([60, 60, 60], features=40, spread=1.5)
    # Most features hardly vary.
    rows[:, 12:] *= 0.01
    exact = fit_head(rows, labels, classes=3)
    monkeypatch.setattr(linear_head, "MOST_DIRECTIONS", 12)
    monkeypatch.setattr(linear_head, "STANDARDISED", (False,))
    reduced = fit_head(rows, labels, classes=3)
    found, expected = (softmax(rows @ head.kernel + head.bias, axis=1) for head in (reduced, exact))
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert reduced.kernel.shape == (40, 3)


@pytest.mark.parametrize(("enough", "fits"), [(1, 1), (6, 1), (7, 2), (1000, 5)])
def test_no_more_folds_are_left_out_than_are_needed(monkeypatch, enough, fits):
    rows, labels = pictures_of([15, 15])
    calls = []
    path = linear_head._fit_path
    monkeypatch.setattr(linear_head, "_fit_path", lambda rows, *rest: calls.append(len(rows)) or path(rows, *rest))
    monkeypatch.setattr(linear_head, "MOST_LEFT_OUT", enough)
    fit_head(rows, labels, classes=2)
    # For each of the two scales, the folds and then all pictures.
    assert calls == ([24] * fits + [30]) * 2


def test_balanced_classes_weigh_the_same():
    rows, labels = pictures_of([90, 6], features=2, spread=8, seed=3)
    plain, balanced = (fit_head(rows, labels, classes=2, balanced=on) for on in (False, True))

    def share_of_the_small_class(head):
        return float(((rows @ head.kernel + head.bias).argmax(1) == 1).mean())

    assert share_of_the_small_class(balanced) > share_of_the_small_class(plain) + 0.1


@pytest.mark.parametrize("standardised", [False, True])
def test_the_scales_are_chosen_by_what_predicts_better(standardised):
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], 30).astype(np.int32)
    rows = random.normal(size=(60, 50)).astype(np.float32)
    # The class shows in a feature that varies much, or in one that varies little among many that vary much.
    rows[:, 0] += 2 * labels
    rows *= 10.0
    rows[:, 0] *= 0.2 if standardised else 10.0
    assert fit_head(rows, labels, classes=2).standardised == standardised
