"""Measuring a model: every picture once, classes matched, and the record of the figures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from jaxcnn.classifier import Classifier
from jaxcnn.config import Config
from jaxcnn.data import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.evaluation import measure, with_mirror_image
from jaxcnn.evaluation_data import class_indices
from jaxcnn.evaluation_record import write_evaluation
from jaxcnn.metrics import score, summarize


def random_split(count, *, side=4, classes=5):
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, side, side, 3), np.uint8), rng.integers(0, classes, count, np.int32))


def channel_logits(images):
    """Five logits that depend on the pixels of each picture alone."""
    return images.reshape(len(images), -1)[:, :5].astype(np.float32) / 16


@pytest.mark.parametrize("batch_size", [1, 4, 7, 23, 64])
def test_every_picture_counts_once_whatever_the_batch(batch_size):
    split = random_split(23)
    whole = summarize([score(channel_logits(split.images), split.labels, np.ones(23, bool))], classes=5)
    measured = measure(channel_logits, split, classes=5, batch_size=batch_size)
    assert measured.scalars() == whole.scalars()
    assert measured.count == 23
    np.testing.assert_array_equal(measured.predicted, whole.predicted)


def test_outcomes_keep_their_values_when_processes_join_them():
    splits = random_split(9), random_split(6)
    alone = measure(channel_logits, *splits, classes=5, batch_size=4)
    joined = measure(channel_logits, *splits, classes=5, batch_size=4, rows=np.arange(4))
    assert alone.confusion.sum() == 15  # Computed when it is asked for
    arrays = {name: value for name, value in vars(alone).items() if isinstance(value, np.ndarray)}
    assert {"predicted", "confidence", "confusion"} <= arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(getattr(joined, name), value, err_msg=name)
        assert getattr(joined, name).dtype == value.dtype, name
    assert joined.scalars() == alone.scalars()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_name_the_picture(value):
    def logits(images):
        values = channel_logits(images)
        values[(images == split.images[9]).all(axis=(1, 2, 3)), 2] = value
        return values

    split = random_split(11)
    with pytest.raises(UserError, match="outputs for picture 9 of the split are not finite"):
        measure(logits, split, classes=5, batch_size=4)


def test_several_splits_are_measured_together():
    one, other = random_split(9), dataclasses.replace(random_split(6), labels=np.full(6, 2, np.int32))
    together = measure(channel_logits, one, other, classes=5, batch_size=4)
    apart = [measure(channel_logits, split, classes=5, batch_size=4) for split in (one, other)]
    np.testing.assert_array_equal(together.confusion, apart[0].confusion + apart[1].confusion)
    assert together.loss == pytest.approx((9 * apart[0].loss + 6 * apart[1].loss) / 15)


def test_padding_may_give_anything():
    def logits(images):
        return np.where((images == 0).all(axis=(1, 2, 3))[:, None], np.float32(np.nan), channel_logits(images))

    assert measure(logits, random_split(5), classes=5, batch_size=4).count == 5


def test_no_pictures():
    with pytest.raises(UserError, match="no pictures to evaluate"):
        measure(channel_logits, random_split(0), classes=5, batch_size=4)


def test_probabilities_of_mirror_images_are_averaged():
    def logits(images):  # sees the left half alone
        assert images.flags.c_contiguous
        return 4 * images[:, :, 0].mean(axis=1).astype(np.float32)

    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, :, 0, 0] = images[1, :, 3, 1] = 1
    a, b = softmax([4, 0, 0]), softmax([0, 0, 0])
    c, d = softmax([0, 0, 0]), softmax([0, 4, 0])
    found = with_mirror_image(logits)(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found), [(a + b) / 2, (c + d) / 2], rtol=1e-6)


def test_averages_of_tiny_probabilities_keep_their_precision():
    found = with_mirror_image(lambda images: np.float32([[0, -800], [0, -900]]))(np.zeros((2, 4, 4, 3), np.uint8))
    np.testing.assert_allclose(found, [[0, -800], [0, -900]], rtol=1e-6)


def test_padding_may_be_infinite_with_mirror_images():
    measured = measure(
        with_mirror_image(
            lambda images: np.where((images == 0).all(axis=(1, 2, 3))[:, None], np.inf, channel_logits(images))
        ),
        random_split(5),
        classes=5,
        batch_size=4,
    )
    assert measured.count == 5


def classifier_of(names, wnids=()):
    return Classifier(
        path=Path(),
        config=Config(),
        names=names,
        wnids=wnids,
        step=None,
        pictures=None,
        temperature=1.0,
        logits=channel_logits,
    )


def dataset_of(names, wnids=()):
    split = random_split(3)
    return Dataset(name="zoo", names=names, wnids=wnids, license="", train=split, validation=split)


def test_classes_that_share_a_name_are_matched_by_their_wordnet_ids():
    names, wnids = ("crane", "crane", "heron"), ("n3", "n1", "n2")
    model = classifier_of(names, wnids)
    assert class_indices(dataset_of(("crane", "heron", "crane"), ("n1", "n2", "n3")), model).tolist() == [1, 2, 0]
    assert class_indices(dataset_of(names, wnids), model).tolist() == [0, 1, 2]
    assert class_indices(dataset_of(names), model).tolist() == [0, 1, 2]
    assert class_indices(dataset_of(("heron", "n1")), model).tolist() == [2, 1]
    with pytest.raises(UserError, match=r"^the class 'crane' of .* may be any of 2 classes of the model; name its"):
        class_indices(dataset_of(("crane", "heron")), model)


def test_names_are_matched_in_any_unicode_form():
    composed, decomposed = ("B\u00e4r", "Zebra"), ("Zebra", "Ba\u0308r")
    assert class_indices(dataset_of(composed), classifier_of(decomposed)).tolist() == [1, 0]
    assert class_indices(dataset_of(decomposed), classifier_of(composed)).tolist() == [1, 0]


def test_names_are_recorded_as_they_are(tmp_path):
    names = ["[red]x[/red]", "\x1b[31mevil", "two\nlines", "\udc80", "plain"]
    write_evaluation(
        measure(channel_logits, random_split(20), classes=5, batch_size=8), tmp_path / "e.json", names=names
    )
    record = json.loads((tmp_path / "e.json").read_text())
    assert [entry["name"] for entry in record["per_class"]] == names


def test_a_class_without_pictures_is_null(tmp_path):
    split = dataclasses.replace(random_split(6), labels=np.zeros(6, np.int32))
    write_evaluation(measure(channel_logits, split, classes=5, batch_size=4), tmp_path / "e.json", names="abcde")
    per_class = json.loads((tmp_path / "e.json").read_text())["per_class"]
    assert [entry["top1"] is None for entry in per_class] == [False, True, True, True, True]
