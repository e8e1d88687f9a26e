"""What is odd about the pictures of a run, found while they were decoded; `python -m jaxcnn.inspect` lists it all."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from jaxcnn.config import DataConfig
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.duplicates import LEAST_SIDE
from jaxcnn.data.loading import is_named
from jaxcnn.data.split import Split
from jaxcnn.errors import UserError

FEW = 10
"""Least number of training pictures of a class that is not remarked on."""

IMBALANCE = 10
"""Least ratio of the largest class to the smallest that is remarked on."""


def check_findings(dataset: Dataset, config: DataConfig) -> list[str]:
    """Returns what is odd about the pictures of a run, in one line each.

    Data sets with a name, such as `tfds:NAME`, are published as they are: only what spoils a measurement is said.

    Raises:
      UserError: pictures of a folder are in training as well as in validation, which `config` does not allow.
    """
    leaks = _describe_leaks(dataset, config)
    if leaks and not config.allow_leaks and not is_named(config.source):
        raise UserError(
            f"{leaks}: the accuracy would be too high; remove one of each, or allow them with --data.allow_leaks"
        )
    return [*([leaks] if leaks else []), *(() if is_named(config.source) else _describe_oddities(dataset))]


def _describe_leaks(dataset: Dataset, config: DataConfig) -> str:
    """Says how many validation pictures have the pixels of a training picture; empty if none has."""
    leaks = shared_rows(dataset.validation, dataset.train, "same")
    if not len(leaks):
        return ""
    facts = dataset.train.facts
    assert facts is not None
    assert dataset.validation.facts is not None
    twin = int(np.flatnonzero(facts["same"] == dataset.validation.facts["same"][leaks[0]])[0])
    listed = "" if is_named(config.source) else f"; `python -m jaxcnn.inspect {config.source}` lists them"
    return (
        f"{len(leaks):,} of {len(dataset.validation):,} validation pictures of {dataset.name} are training pictures "
        f"too, such as {dataset.validation.file(int(leaks[0]))} = {dataset.train.file(twin)}{listed}"
    )


def shared_rows(split: Split, other: Split, kind: str) -> Int64[np.ndarray, " k"]:
    """Returns the pictures of a split that are in a group with pictures of another split.

    Args:
      split: the split.
      other: the other one, of the same data set.
      kind: `same` for groups with the same pixels, `alike` for groups of nearly the same pictures, too.
    """
    if split.facts is None or other.facts is None:
        return np.zeros(0, np.int64)
    # Few pictures are in groups, and the other split may have millions.
    grouped = np.flatnonzero(split.facts[kind] >= 0)
    return grouped[np.isin(split.facts[kind][grouped], other.facts[kind])] if len(grouped) else grouped


def _describe_oddities(dataset: Dataset) -> Iterator[str]:
    """Yields what is odd about the pictures of a folder, but spoils nothing."""
    train, validation = dataset.train, dataset.validation
    # Duplicates.
    alike = len(shared_rows(validation, train, "alike")) - len(shared_rows(validation, train, "same"))
    if alike:
        yield f"{alike:,} validation pictures are nearly the same as training pictures: their accuracy says less"
    contradicting = _count_contradictions(dataset, "same")
    if contradicting:
        yield f"{contradicting:,} pictures are in several classes; one label is wrong"
    similar = _count_contradictions(dataset, "alike") - contradicting
    if similar:
        yield f"{similar:,} pictures look like pictures of another class; a label may be wrong"
    repeated = _count_repeated(train)
    if repeated:
        yield f"{repeated:,} of {len(train):,} training pictures repeat another one"
    # Classes.
    counts = np.bincount(train.labels, minlength=len(dataset.names))
    few = [name for name, count in zip(dataset.names, counts, strict=True) if count < FEW]
    if few:
        listed = ", ".join(few[:5]) + ", ..." * (len(few) > 5)
        yield f"{len(few):,} classes have fewer than {FEW} training pictures: {listed}"
    most, least = int(counts.max()), int(counts.min())
    if most >= IMBALANCE * max(least, 1):
        largest, smallest = (dataset.names[int(pick)] for pick in (counts.argmax(), counts.argmin()))
        yield f"{largest!r} has {most:,} training pictures, {smallest!r} has {least:,}"
    # Single pictures; if all of them are so, none is odd.
    if train.facts is not None:
        for odd, what in ((train.facts["is_gray"], "gray"), (train.facts["least"] < LEAST_SIDE, "tiny")):
            if 0 < odd.sum() < len(train):
                first = train.file(int(odd.argmax()))
                yield f"{odd.sum():,} of {len(train):,} training pictures are {what}, such as {first}"


def _count_contradictions(dataset: Dataset, kind: str) -> int:
    """Returns the number of pictures in groups of this kind that have more than one class; see `shared_rows`."""
    found = [np.empty((0, 2), np.int32)]
    for split in (dataset.train, dataset.validation):
        if split.facts is not None:
            # Few pictures are in groups, of which there may be ten million.
            groups = split.facts[kind]
            grouped = np.flatnonzero(groups >= 0)
            found.append(np.stack([groups[grouped], split.labels[grouped]], axis=1))
    # Each pair of a group and a class once.
    rows = np.concatenate(found)
    kinds, count = np.unique(np.unique(rows, axis=0)[:, 0], return_counts=True)
    return int(np.isin(rows[:, 0], kinds[count > 1]).sum())


def _count_repeated(split: Split) -> int:
    """Returns how many pictures of a split could be left out, since it has the same or nearly the same ones."""
    if split.facts is None:
        return 0
    groups = split.facts["alike"][split.facts["alike"] >= 0]
    return len(groups) - len(np.unique(groups))
