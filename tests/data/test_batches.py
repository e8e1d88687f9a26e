import gc
import itertools
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.data import batches
from jaxcnn.data.batches import (
    balanced_order,
    begin_order,
    epoch_order,
    eval_batches,
    eval_positions,
    steps_per_epoch,
    train_batches,
)
from jaxcnn.data.rows import Rows
from jaxcnn.data.split import Split


def numbered(count: int) -> Split:
    """Makes a split whose picture `i` is filled with `i` and has the label `i`."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    return Split(images, np.arange(count, dtype=np.int32))


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def take(split: Split, count: int, **options) -> list[list[int]]:
    return [batch.labels.tolist() for batch in itertools.islice(train_batches(split, **options), count)]


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6), count=st.integers(0, 50))
def test_an_epoch_has_every_example_once(seed, epoch, count):
    order = epoch_order(seed=seed, epoch=epoch, count=count)
    assert sorted(order) == list(range(count))
    assert np.array_equal(order, epoch_order(seed=seed, epoch=epoch, count=count))


def test_seed_and_epoch_both_change_the_order():
    orders = {tuple(epoch_order(seed=seed, epoch=epoch, count=20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_the_same_on_every_machine():
    assert epoch_order(seed=3, epoch=2, count=8).tolist() == [1, 7, 4, 0, 2, 6, 3, 5]


def test_an_order_that_a_thread_has_begun_is_the_same_and_is_not_kept(monkeypatch):
    begin_order(seed=3, epoch=2, count=8)
    monkeypatch.setattr(batches, "_shuffle", lambda seed, epoch, count: np.zeros(count, np.int64))
    assert epoch_order(seed=3, epoch=1, count=8).tolist() == [0] * 8
    assert epoch_order(seed=3, epoch=2, count=8).tolist() == [1, 7, 4, 0, 2, 6, 3, 5]
    assert epoch_order(seed=3, epoch=2, count=8).tolist() == [0] * 8


def test_train_batches_follow_the_order():
    split = numbered(10)
    order = [epoch_order(seed=5, epoch=epoch, count=10).tolist() for epoch in (0, 1)]
    assert take(split, 6, seed=5, batch_size=3) == [
        *(order[0][start : start + 3] for start in (0, 3, 6)),
        *(order[1][start : start + 3] for start in (0, 3, 6)),
    ]


def test_pictures_and_labels_belong_together():
    for batch in itertools.islice(train_batches(numbered(10), seed=0, batch_size=4), 5):
        assert batch.images.shape == (4, 2, 2, 3)
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == np.int32
        assert (batch.images[:, 0, 0, 0] == batch.labels).all()


@given(start=st.integers(0, 30), count=st.integers(3, 12), batch_size=st.integers(1, 3))
def test_resuming_at_a_step_is_the_same_as_skipping_to_it(start, count, batch_size):
    options = {"seed": 1, "batch_size": batch_size}
    split = numbered(count)
    assert take(split, 4, start_step=start, **options) == take(split, start + 4, **options)[start:]


def test_a_selection_reads_its_rows_alone():
    split = numbered(20).select(np.arange(10, 20))
    assert isinstance(split.images, Rows)
    batch = next(train_batches(split, seed=0, batch_size=10))
    assert sorted(batch.labels) == list(range(10, 20))
    assert (batch.images[:, 0, 0, 0] == batch.labels).all()
    whole = next(eval_batches(split, batch_size=16))
    assert whole.images[:10, 0, 0, 0].tolist() == list(range(10, 20))


def test_an_epoch_has_full_batches_alone():
    assert steps_per_epoch(numbered(10), 3) == 3
    assert steps_per_epoch(numbered(9), 3) == 3


def test_a_batch_larger_than_the_split_repeats_its_examples():
    assert steps_per_epoch(numbered(10), 23) == 1
    first, second = itertools.islice(train_batches(numbered(10), seed=0, batch_size=23), 2)
    for batch in (first, second):
        assert sorted(set(np.bincount(batch.labels, minlength=10))) == [2, 3]
    assert first.labels.tolist() != second.labels.tolist()
    resumed = next(train_batches(numbered(10), seed=0, batch_size=23, start_step=1))
    assert resumed.labels.tolist() == second.labels.tolist()


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=5), epoch=st.integers(0, 100))
def test_balanced_classes_are_drawn_equally_often(counts, epoch):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    order = balanced_order(labels, seed=3, epoch=epoch)
    assert len(order) == len(labels)
    drawn = np.bincount(labels[order], minlength=len(counts))
    assert drawn.max() - drawn.min() <= 1
    for label in range(len(counts)):
        times = np.bincount(order, minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1
    assert np.array_equal(order, balanced_order(labels, seed=3, epoch=epoch))


def test_balanced_batches_follow_their_order_and_use_every_picture_in_time():
    split = Split(numbered(12).images, np.array([0] * 9 + [1] * 3, np.int32))
    batches = itertools.islice(train_batches(split, seed=0, batch_size=6, balanced=True), 20)
    drawn = [batch.images[:, 0, 0, 0].tolist() for batch in batches]
    assert drawn[:2] == balanced_order(split.labels, seed=0, epoch=0).reshape(2, 6).tolist()
    assert {number for batch in drawn for number in batch} == set(range(12))
    resumed = next(train_batches(split, seed=0, batch_size=6, start_step=7, balanced=True))
    assert resumed.images[:, 0, 0, 0].tolist() == drawn[7]


@given(count=st.integers(0, 20), batch_size=st.integers(1, 7))
def test_evaluation_sees_every_example_once(count, batch_size):
    batches = list(eval_batches(numbered(count), batch_size=batch_size))
    assert len(batches) == -(-count // batch_size)
    for batch in batches:
        assert batch.images.shape == (batch_size, 2, 2, 3)
        assert batch.labels.shape == batch.mask.shape == (batch_size,)
        assert not batch.images[~batch.mask].any()
    seen = [label for batch in batches for label in batch.labels[batch.mask].tolist()]
    shown = [pixel for batch in batches for pixel in batch.images[batch.mask][:, 0, 0, 0].tolist()]
    assert seen == shown == list(range(count))


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1, 6, 7], [2, 3, 4, 5]]])
def test_processes_read_their_rows_of_the_same_batches(parts):
    split, options = numbered(21), {"seed": 3, "batch_size": 8, "start_step": 1}
    whole = np.array(take(split, 5, **options))
    for rows in map(np.array, parts):
        assert np.array_equal(take(split, 5, **options, rows=rows), whole[:, rows])
    # In evaluation, they have every example once between them.
    found = {}
    for rows in map(np.array, parts):
        batches = list(eval_batches(split, batch_size=8, rows=rows))
        assert {len(batch.labels) for batch in batches} == {4}
        labels = np.concatenate([batch.labels[batch.mask] for batch in batches])
        assert np.array_equal(np.concatenate([batch.images[batch.mask, 0, 0, 0] for batch in batches]), labels)
        found |= dict(zip(eval_positions(21, batch_size=8, rows=rows).tolist(), labels.tolist(), strict=True))
    assert found == {i: i for i in range(21)}


def test_batches_are_pytrees():
    assert len(jax.tree.leaves(next(train_batches(numbered(4), seed=0, batch_size=2)))) == 2
    assert len(jax.tree.leaves(next(eval_batches(numbered(4), batch_size=2)))) == 3


@pytest.mark.parametrize("end", ["close", "forget", "exhaust", "error"])
def test_no_thread_is_left(end):
    before = batch_threads()
    batches = train_batches(numbered(10), seed=0, batch_size=2)
    next(batches)
    assert len(batch_threads()) == len(before) + 1
    if end == "close":
        batches.close()
    elif end == "exhaust":
        list(eval_batches(numbered(5), batch_size=2))
        batches.close()
    elif end == "error":
        missing = Rows(numbered(3).images, np.arange(10))
        with pytest.raises(IndexError):
            list(eval_batches(Split(missing, np.zeros(10, np.int32)), batch_size=2))
        batches.close()
    del batches
    gc.collect()
    assert batch_threads() == before


class Watched(Rows):
    """Rows that record which thread reads them."""

    def __getitem__(self, index):
        reads.append(threading.current_thread())
        return super().__getitem__(index)


reads: list[threading.Thread] = []


def test_the_thread_that_gathers_batches_places_them():
    threads = []

    def place(batch):
        threads.append(threading.current_thread())
        return batch._replace(labels=-batch.labels)

    batches = train_batches(numbered(40), seed=0, batch_size=2, place=place)
    assert np.array_equal(next(batches).labels, -epoch_order(seed=0, epoch=0, count=40)[:2])
    batches.close()
    assert threading.current_thread() not in threads


def test_batches_are_gathered_ahead_on_another_thread():
    reads.clear()
    split = numbered(40)
    batches = train_batches(Split(Watched(split.images, np.arange(40)), split.labels), seed=0, batch_size=2)
    next(batches)
    deadline = time.monotonic() + 20
    while len(reads) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(reads) == 4  # the one taken and three ahead, no more
    assert threading.current_thread() not in reads
    batches.close()
