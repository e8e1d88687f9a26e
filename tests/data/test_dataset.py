import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.data.dataset import Dataset, identify
from jaxcnn.data.rows import Rows
from jaxcnn.data.split import Split
from jaxcnn.errors import UserError


def numbered(labels) -> Split:
    """Makes a split whose picture `i` is filled with `i`."""
    count = len(labels)
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))
    return Split(np.ascontiguousarray(images), np.asarray(labels, np.int32))


def dataset(labels, *, classes: int, validation=()) -> Dataset:
    names = tuple(f"class {index}" for index in range(classes))
    return Dataset(
        name="set", names=names, wnids=(), license="unknown", train=numbered(labels), validation=numbered(validation)
    )


def numbers(split: Split) -> list[int]:
    return split.images[:][:, 0, 0, 0].tolist()


def test_rows_are_indexed_like_an_array():
    array = numbered(range(6)).images
    rows = Rows(array, np.array([4, 0, 2]))
    assert len(rows) == 3
    assert rows.shape == (3, 2, 2, 3)
    assert rows.dtype == np.uint8
    for index in (0, -1, slice(1, 3), np.array([2, 2, 0]), [1]):
        assert np.array_equal(rows[index], array[[4, 0, 2]][index])


def test_selecting_twice_shares_the_array():
    split = numbered([0, 1, 2, 3, 4])
    chosen = split.select(np.array([4, 3, 1])).select(np.array([2, 0]))
    assert numbers(chosen) == [1, 4]
    assert chosen.labels.tolist() == [1, 4]
    assert len(chosen) == 2
    assert chosen.images.array is split.images


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32),
)
def test_every_class_is_split_alike_and_no_picture_is_lost(counts, fraction, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    result = dataset(labels, classes=len(counts)).hold_out(fraction=fraction, seed=seed)
    assert sorted(numbers(result.train) + numbers(result.validation)) == list(range(len(labels)))
    for split in (result.train, result.validation):
        assert split.labels.tolist() == labels[numbers(split)].tolist()
    held = np.bincount(result.validation.labels, minlength=len(counts))
    for count, actual in zip(counts, held, strict=True):
        assert 1 <= actual <= count - 1
        assert abs(actual - count * fraction) <= 1


def test_the_seed_alone_chooses_what_is_held_out():
    labels = np.arange(100) % 4
    first, again, other = (
        numbers(dataset(labels, classes=4).hold_out(fraction=0.2, seed=seed).validation) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(first) == 20


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_the_same_pictures_are_held_out_as_in_earlier_versions(classes):
    """A resumed run would otherwise validate with training pictures. A negative label means that there is none."""
    rng = np.random.default_rng(classes)
    labels = rng.permutation(np.concatenate([np.repeat(np.arange(classes), rng.integers(2, 6, classes)), [-1, -1]]))
    order = np.random.default_rng(7).permutation(len(labels))
    expected = []
    for index in range(classes):
        members = order[labels[order] == index]
        expected += members[: max(round(len(members) * 0.3), 1)].tolist()
    assert numbers(dataset(labels, classes=classes).hold_out(fraction=0.3, seed=7).validation) == sorted(expected)


def test_holding_out_replaces_the_validation_pictures():
    result = dataset([0, 0, 1, 1], classes=2, validation=[0, 1, 0]).hold_out(fraction=0.5, seed=0)
    assert len(result.train) == 2
    assert len(result.validation) == 2


@pytest.mark.parametrize(("labels", "count"), [([0, 0, 1], "1 training picture"), ([0, 0], "no training pictures")])
def test_a_class_with_fewer_than_two_pictures_is_named(labels, count):
    needs = "needs one to train on and one to hold out for validation; add some or remove the class"
    with pytest.raises(UserError, match=rf"^class 'class 1' of set has {count}, but {needs}$"):
        dataset(labels, classes=2).hold_out(fraction=0.5, seed=0)


def test_a_fingerprint_depends_on_the_split_and_its_order():
    labels = [0, 1, 0, 1, 1, 0]
    whole = dataset(labels, classes=2)
    split = whole.hold_out(fraction=0.4, seed=0)
    found = split.fingerprint()
    assert (found.train, found.validation, found.side) == (4, 2, 2)
    assert found == whole.hold_out(fraction=0.4, seed=0).fingerprint()
    more = dataset([*labels, 1], classes=2).hold_out(fraction=0.4, seed=0)
    assert not more.fingerprint().has_same_split(found)
    moved = Dataset(**vars(split) | {"train": split.train.select(np.array([1, 0, 2, 3]))})
    assert moved.train.labels.tolist() != split.train.labels.tolist()
    assert not moved.fingerprint().has_same_split(found)


def test_a_fingerprint_depends_on_the_sizes_of_the_splits():
    first, other = (dataset([0] * count, classes=1, validation=[0] * (4 - count)).fingerprint() for count in (2, 3))
    assert not dataclasses.replace(other, side=first.side + 1).has_same_split(first)


def test_a_fingerprint_depends_on_the_validation_pixels():
    first, others = dataset([0, 1], classes=2, validation=[0] * 1000), dataset([0, 1], classes=2, validation=[0] * 1000)
    assert others.fingerprint().has_same_split(first.fingerprint())
    others.validation.images[999, 1, 1, 2] += 1
    assert not others.fingerprint().has_same_split(first.fingerprint())


def test_a_fingerprint_identifies_training_pictures():
    few, many = (dataset(np.arange(count) % 2, classes=2, validation=[0]) for count in (3, 10_000))
    rng = np.random.default_rng(0)
    for whole in (few, many):
        whole.train.images[...] = rng.integers(0, 256, whole.train.images.shape)
    assert few.fingerprint().identities() == [
        hashlib.sha256(picture.tobytes()).hexdigest()[:12] for picture in few.train.images
    ]
    found, rows = many.fingerprint().identities(), np.arange(10_000)
    assert len(set(found)) == 256
    places = [row for row, name in enumerate(identify(many.train, rows)) if name in found]
    assert (places[0], places[-1]) == (0, 9_999)
    assert set(np.diff(places)) == {39, 40}


def test_pixels_of_another_size_are_not_compared():
    small, large = (
        Dataset(
            **vars(dataset([0, 1], classes=2)) | {"validation": Split(np.zeros((1, side, side, 3), np.uint8), label)}
        )
        for side, label in ((2, np.zeros(1, np.int32)), (4, np.zeros(1, np.int32)))
    )
    assert large.fingerprint().has_same_split(small.fingerprint())
