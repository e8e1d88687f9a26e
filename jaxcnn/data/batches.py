"""The order of examples, and batches that a thread gathers ahead of the device."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from jaxcnn.data.crops import draw_crops
from jaxcnn.data.split import Split

AHEAD = 3
"""Batches in preparation: one being copied to the device, one waiting, one being gathered."""


class Batch(NamedTuple):
    """Training examples; a pytree. The pictures may be larger than the model's input."""

    images: UInt8[np.ndarray, "batch stored stored 3"]
    labels: Int32[np.ndarray, " batch"]


class EvalBatch(NamedTuple):
    """Evaluation examples; a pytree. `mask` is false for the padding of the last batch."""

    images: UInt8[np.ndarray, "batch size size 3"]
    labels: Int32[np.ndarray, " batch"]
    mask: Bool[np.ndarray, " batch"]


def epoch_order(*, seed: int, epoch: int, count: int) -> Int64[np.ndarray, " {count}"]:
    """Returns a permutation of `count` examples that depends on `seed` and `epoch` alone (both 0 or more)."""
    started = _started_orders.pop((seed, epoch, count), None)
    return _shuffle(seed, epoch, count) if started is None else started.result()


def begin_order(*, seed: int, epoch: int, count: int) -> None:
    """Lets a thread compute what the next call of `epoch_order` with these arguments returns.

    For ten million examples it takes a second.
    """
    _started_orders.clear()
    _started_orders[seed, epoch, count] = _order_thread().submit(_shuffle, seed, epoch, count)


_started_orders: dict[tuple[int, int, int], Future[Int64[np.ndarray, " count"]]] = {}


@functools.cache
def _order_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="order")


def _shuffle(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " {count}"]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def balanced_order(labels: Int32[np.ndarray, " n"], *, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Returns as many examples as there are, equally many of each class, in an order as of `epoch_order`.

    A class with fewer examples has each of them equally often, or once more; of a larger one, some are drawn.
    """
    random = np.random.default_rng([seed, epoch])
    classes, counts = np.unique(labels, return_counts=True)
    # What does not divide goes to other classes in each epoch.
    shares = np.full(len(classes), len(labels) // len(classes))
    shares[random.permutation(len(classes))[: len(labels) % len(classes)]] += 1
    # The examples of each class, in their order.
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    drawn = [np.resize(random.permutation(rows), share) for rows, share in zip(members, shares, strict=True)]
    return random.permutation(np.concatenate(drawn))


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of batches in an epoch, at least one.

    Batches are full: each epoch leaves out other examples, and fewer examples than a batch holds are repeated in it.
    """
    return max(len(split) // batch_size, 1)


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    balanced: bool = False,
    rows: Int64[np.ndarray, " rows"] | None = None,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> Generator[Batch]:
    """Yields shuffled full batches without end; the batch of a step depends on the arguments alone.

    Where a batch holds more than all pictures, it has each of them equally often, or once more.

    A thread gathers a few batches ahead, until the generator is closed or garbage-collected.

    Args:
      split: the pictures.
      seed: decides the order, see `epoch_order`.
      batch_size: examples in a batch.
      start_step: step of the first batch, counted from 0, where training resumes.
      balanced: draw all classes equally often, see `balanced_order`.
      rows: positions in each batch that are read, such as the share of one of several processes; None: all.
      place: what else the thread does with each batch, such as starting its transfer to a device.
    """
    part: slice | Int64[np.ndarray, " rows"] = slice(None) if rows is None else rows
    first_epoch, position = divmod(start_step, steps_per_epoch(split, batch_size))

    def indices() -> Iterator[Int64[np.ndarray, " batch"]]:
        # Only the first epoch begins in the middle, where training resumes.
        skip = position * batch_size
        for epoch in itertools.count(first_epoch):
            order = (
                balanced_order(split.labels, seed=seed, epoch=epoch)
                if balanced
                else epoch_order(seed=seed, epoch=epoch, count=len(split))
            )
            if len(order) < batch_size:
                order = np.resize(order, batch_size)
            for start in range(skip, len(order) - batch_size + 1, batch_size):
                yield order[start : start + batch_size][part]
            skip = 0

    def read(step: int, rows: Int64[np.ndarray, " batch"]) -> Batch:
        crops = draw_crops(seed=seed, step=step, count=batch_size)[part]
        return place(Batch(split.read(rows, crops), split.labels[rows]))

    # The thread reads the pictures: here only their indices are drawn.
    return _prefetch(lambda numbered: read(*numbered), enumerate(indices(), start_step))


def eval_batches(
    split: Split, *, batch_size: int, rows: Int64[np.ndarray, " rows"] | None = None
) -> Generator[EvalBatch]:
    """Yields every example once, in order; black pictures fill up the last batch, with `mask` false.

    Args:
      split: the pictures.
      batch_size: examples in a batch.
      rows: positions in each batch that are read, in rising order; None: all.
    """
    shown = split.shown

    def gather(start: int) -> EvalBatch:
        # The model is compiled for one batch size: the last batch is padded, not shortened.
        count = min(len(split) - start, batch_size)
        wanted = batch_size if rows is None else len(rows)
        read = slice(start, start + count) if rows is None else start + rows[rows < count]
        images, labels = np.asarray(shown[read]), split.labels[read]
        missing = wanted - len(labels)
        return EvalBatch(
            images=np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            labels=np.pad(labels, (0, missing)),
            mask=np.arange(wanted) < len(labels),
        )

    return _prefetch(gather, range(0, len(split), batch_size))


def eval_positions(count: int, *, batch_size: int, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " examples"]:
    """Returns the positions of the examples that `eval_batches` yields from `count` for some rows of each batch."""
    positions = np.concatenate([start + rows for start in range(0, count, batch_size)])
    return positions[positions < count]


def _prefetch[Argument, Result](
    function: Callable[[Argument], Result], arguments: Iterable[Argument]
) -> Generator[Result]:
    """Yields `function(argument)` for each argument in order; a thread computes up to `AHEAD` of them in advance."""
    remaining = iter(arguments)
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = deque(pool.submit(function, argument) for argument in itertools.islice(remaining, AHEAD))
        while pending:
            result = pending.popleft().result()
            # Ask for the next one before this one is used, so that the thread is never idle.
            pending.extend(pool.submit(function, argument) for argument in itertools.islice(remaining, 1))
            yield result
