"""The order of examples, and batches gathered ahead of the device."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from jaxcnn.data.dataset import Split
from jaxcnn.errors import UserError

AHEAD = 3  # batches kept ready: one being copied to the device, one waiting, one being gathered


class Batch(NamedTuple):
    """Training examples; a pytree for jax."""

    images: UInt8[np.ndarray, "batch size size 3"]
    labels: Int32[np.ndarray, " batch"]


class EvalBatch(NamedTuple):
    """Evaluation examples; `mask` is false where the last batch was filled up."""

    images: UInt8[np.ndarray, "batch size size 3"]
    labels: Int32[np.ndarray, " batch"]
    mask: Bool[np.ndarray, " batch"]


def epoch_order(*, seed: int, epoch: int, count: int) -> Int64[np.ndarray, " {count}"]:
    """The order of `count` examples in an epoch: each once, decided by `seed` and `epoch` alone (both 0 or more)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Full batches in an epoch; the examples left over differ from epoch to epoch.

    Raises:
      UserError: there are fewer pictures than a batch holds.
    """
    if len(split) < batch_size:
        raise UserError(
            f"batch_size is {batch_size}, but there are only {len(split)} training pictures; make it smaller"
        )
    return len(split) // batch_size


def train_batches(split: Split, *, seed: int, batch_size: int, start_step: int = 0) -> Generator[Batch]:
    """Shuffled full batches without end; the batch of a step depends on nothing but the arguments.

    A thread gathers a few batches ahead. It ends when the iterator is closed or forgotten.

    Args:
      split: the pictures.
      seed: decides the order, see `epoch_order`.
      batch_size: examples in a batch.
      start_step: steps already taken; the first batch is that of this step, counted from 0.

    Raises:
      UserError: there are fewer pictures than a batch holds.
    """
    first_epoch, position = divmod(start_step, steps_per_epoch(split, batch_size))

    def indices() -> Iterator[Int64[np.ndarray, " batch"]]:
        skip = position * batch_size
        for epoch in itertools.count(first_epoch):
            order = epoch_order(seed=seed, epoch=epoch, count=len(split))
            for start in range(skip, len(order) - batch_size + 1, batch_size):
                yield order[start : start + batch_size]
            skip = 0

    return _prefetch(lambda rows: Batch(split.images[rows], split.labels[rows]), indices())


def eval_batches(split: Split, *, batch_size: int) -> Generator[EvalBatch]:
    """Every example exactly once, in order; the last batch is filled up with black pictures that `mask` leaves out."""

    def gather(start: int) -> EvalBatch:
        images = np.asarray(split.images[start : start + batch_size])
        labels = split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        return EvalBatch(
            images=np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            labels=np.pad(labels, (0, missing)),
            mask=np.arange(batch_size) < len(labels),
        )

    return _prefetch(gather, range(0, len(split), batch_size))


def _prefetch[Argument, Result](
    function: Callable[[Argument], Result], arguments: Iterable[Argument]
) -> Generator[Result]:
    """Results of `function` for each of the arguments in order, computed by a thread up to `AHEAD` calls early."""
    calls = iter(arguments)
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = deque(pool.submit(function, call) for call in itertools.islice(calls, AHEAD))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, call) for call in itertools.islice(calls, 1))
            yield result
