"""The temperature: found if there is one, harmless if there is none, and recorded for its checkpoint alone."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from jaxcnn import calibration
from jaxcnn.calibration import (
    HIGHEST,
    LOWEST,
    Calibration,
    calibrate,
    cross_fit,
    fit_temperature,
    keep_every,
    read_calibration,
    write_calibration,
)
from jaxcnn.errors import UserError

RECORD = Calibration(step=7, temperature=1.5, count=40, ece_before=0.25, ece_after=0.125)


def draw(seed, *, count, classes, temperature=1.0, spread=2.0):
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(count, classes)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(axis=1).astype(np.int32)


def cross_entropy(logits, labels):
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6, 4.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    logits, labels = draw(3, count=20_000, classes=10, temperature=temperature, spread=3 * temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_many_pictures_get_their_most_likely_temperature():
    logits, labels = draw(4, count=5000, classes=5, temperature=2.0)
    grid = np.linspace(1.5, 2.5, 1001)
    best = grid[np.argmin([cross_entropy(logits / temperature, labels) for temperature in grid])]
    assert fit_temperature(logits, labels) == pytest.approx(best, abs=0.005)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 60),
    classes=st.integers(2, 8),
    temperature=st.floats(0.01, 50),
    spread=st.floats(1e-3, 1e3),
)
def test_the_cross_entropy_never_rises(seed, count, classes, temperature, spread):
    logits, labels = draw(seed, count=count, classes=classes, temperature=temperature, spread=spread)
    found = fit_temperature(logits, labels)
    assert LOWEST <= found <= HIGHEST
    before, after = cross_entropy(logits, labels), cross_entropy(logits / found, labels)
    assert after <= before * (1 + 1e-6) + 1e-9


@given(seed=st.integers(0, 2**32), temperature=st.floats(LOWEST, HIGHEST))
def test_predictions_stay_the_same(seed, temperature):
    logits, labels = draw(seed, count=30, classes=6, temperature=temperature)
    scaled = cross_fit(logits, labels)
    np.testing.assert_array_equal(scaled.argmax(axis=1), logits.argmax(axis=1))
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("count", [1, 3, 300])
def test_a_perfect_model_is_not_made_certain(count):
    """The likelihood alone would choose the lowest temperature allowed."""
    labels = np.arange(count, dtype=np.int32) % 10
    logits = 8 * np.eye(10, dtype=np.float32)[labels]
    assert 0.5 < fit_temperature(logits, labels) <= 1


def test_a_handful_of_mistakes_does_not_drown_everything():
    logits = np.array([[9, 0, 0], [9, 0, 0], [0, 9, 0]], np.float32)
    assert 1 < fit_temperature(logits, np.array([1, 2, 0], np.int32)) < HIGHEST


def test_hopeless_logits_stay_in_bounds():
    logits, labels = draw(0, count=4000, classes=4, temperature=1e6, spread=1e4)
    assert fit_temperature(logits, labels) == pytest.approx(HIGHEST, rel=1e-3)
    assert fit_temperature(np.zeros((5, 3), np.float32), np.zeros(5, np.int32)) == pytest.approx(1, abs=1e-4)


def test_no_pictures_give_no_temperature():
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int32)) == 1


def test_each_half_has_the_temperature_of_the_other():
    """The factors show which half a picture is in, and that the halves are stratified."""
    logits, labels = draw(1, count=400, classes=3, temperature=2.5)
    factors = logits[:, 0] / cross_fit(logits, labels)[:, 0]
    values, sizes = np.unique(factors.round(4), return_counts=True)
    assert list(sizes) == [200, 200]
    first = np.isclose(factors, values[0], atol=1e-3)
    for half, other in ((first, ~first), (~first, first)):
        assert factors[half].mean() == pytest.approx(fit_temperature(logits[other], labels[other]), rel=1e-4)
        assert np.abs(np.bincount(labels[half]) - np.bincount(labels[other])).max() <= 1


def test_halves_are_the_same_every_time_and_not_by_position():
    logits, labels = draw(2, count=200, classes=2, temperature=3.0)
    np.testing.assert_array_equal(cross_fit(logits, labels), cross_fit(logits, labels))
    factors = (logits / cross_fit(logits, labels))[np.argsort(labels, kind="stable"), 0]
    turns = np.count_nonzero(np.diff(factors.round(3)))
    assert 60 < turns < 140  # Alternating halves would have 199, contiguous ones 3.


def test_one_picture_is_left_as_it_is():
    """There is no other half to fit to."""
    logits = np.array([[4, 0]], np.float32)
    np.testing.assert_array_equal(cross_fit(logits, np.array([1], np.int32)), logits)


def test_the_record_has_both_errors():
    logits, labels = draw(5, count=4000, classes=10, temperature=3.0, spread=4.0)
    found = calibrate(logits, labels, step=12)
    assert (found.step, found.count) == (12, 4000)
    assert found.temperature == pytest.approx(3, rel=0.1)
    confidence = softmax(logits, axis=1).max(axis=1).mean()
    accuracy = (logits.argmax(axis=1) == labels).mean()
    assert found.ece_before == pytest.approx(confidence - accuracy, abs=0.01)  # Over-confident in every bin.
    assert found.ece_after < 0.03 < found.ece_before


def test_the_error_afterwards_is_measured_by_cross_fitting():
    logits, labels = draw(6, count=12, classes=3, temperature=4.0)
    found = calibrate(logits, labels, step=1)
    fitted = calibrate(logits / np.float32(found.temperature), labels, step=1)
    assert found.ece_after != pytest.approx(fitted.ece_before)


def test_a_record_is_read_for_its_step_only(tmp_path):
    path = tmp_path / "calibration.json"
    assert read_calibration(path, step=7) is None
    write_calibration(RECORD, path)
    assert read_calibration(path, step=7) == RECORD
    for step in (6, 8):
        assert read_calibration(path, step=step) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ("{}", r"is damaged \(calibration\.step is missing\)"),
        (json.dumps(dataclasses.asdict(RECORD) | {"temperature": None}), "is damaged"),
        (json.dumps(dataclasses.asdict(RECORD) | {"temperature": 0}), r"temperature is 0.0, outside of 0.05 to 20"),
        (json.dumps(dataclasses.asdict(RECORD) | {"temperature": float("nan")}), "temperature is nan"),
        (json.dumps(dataclasses.asdict(RECORD) | {"temperature": 21}), "temperature is 21.0"),
    ],
)
def test_a_damaged_record_is_reported(tmp_path, text, message):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_calibration(path, step=7)
    assert "remove it and run the training again, which only rewrites this file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_temperature_is_reported(tmp_path):
    path = tmp_path / "calibration.json"
    write_calibration(RECORD, path)
    path.write_text(path.read_text().replace(f'"temperature": {RECORD.temperature}', '"temperature": 1.25'))
    with pytest.raises(UserError, match=r"is damaged \(its values differ from its checksum, which"):
        read_calibration(path, step=7)


def test_a_record_that_cannot_be_read_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"is damaged \(.*Is a directory"):
        read_calibration(tmp_path, step=7)


def test_a_record_that_cannot_be_written_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"cannot be written to .*: No such file"):
        write_calibration(RECORD, tmp_path / "gone" / "calibration.json")


@pytest.mark.parametrize("every", [1, 2, 3, 7, 40])
def test_rows_are_kept_across_batches(every):
    rows = np.arange(34, dtype=np.float32).reshape(17, 2)
    for batch in (1, 4, 5, 17):
        kept = keep_every((rows[start : start + batch] for start in range(0, 17, batch)), every)
        assert np.array_equal(kept, rows[::every])


def test_calibration_takes_little_memory_beside_the_logits(monkeypatch):
    """Some pictures at a time, with the same result; copies of all logits in float64 were seven times as large."""
    logits, labels = draw(7, count=2000, classes=100, temperature=2.0)
    whole = calibrate(logits, labels, step=1)
    monkeypatch.setattr(calibration, "AT_ONCE", 5000)
    tracemalloc.start()
    found = calibrate(logits, labels, step=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3.5 * logits.nbytes
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(whole))
