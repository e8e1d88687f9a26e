"""A data set whose pictures are read when they are needed."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from jaxcnn.checksum import ChecksumError, seal, unseal
from jaxcnn.data.decoding import DECODER
from jaxcnn.data.fingerprint import DIGITS, SAMPLE, Fingerprint
from jaxcnn.data.resize import STRETCH, Resize
from jaxcnn.data.split import Split
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError

CHUNK = 512
"""Pictures read at a time where all pictures of a split are read."""


@dataclass(frozen=True)
class Store:
    """How the pictures of a data set are kept on disk.

    Attributes:
      kind: `decoded`, as pixels, or `encoded`, as files that are decoded whenever they are read.
      folder: the entry of the cache.
      bytes: what they take there.
      reason: why this kind was chosen; empty if the settings asked for it, or if it is the usual one.
    """

    kind: Literal["decoded", "encoded"]
    folder: Path
    bytes: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures to train on and to validate with.

    Attributes:
      name: of the data set, for people.
      names: class names; the position is the class index.
      wnids: WordNet ids in the order of `names`; empty if the classes have none.
      license: terms of use, or `unknown`.
      train: training pictures.
      validation: validation pictures.
      resize: how the pictures became squares.
      store: how they are kept on disk; None if they are not.
    """

    name: str
    names: tuple[str, ...]
    wnids: tuple[str, ...]
    license: str
    train: Split
    validation: Split
    resize: Resize = STRETCH
    store: Store | None = None

    def fingerprint(self) -> Fingerprint:
        """Identifies the split; reads all validation pictures, but only a sample of the many training pictures."""
        # Little-endian labels, so that every machine computes the same hash.
        labels = hashlib.sha256()
        for split in (self.train, self.validation):
            labels.update(f"{len(split)}:".encode() + split.labels.astype("<i4").tobytes())
        pixels, seen = self._known_hashes()
        return Fingerprint(
            train=len(self.train),
            validation=len(self.validation),
            labels=labels.hexdigest(),
            pixels=pixels,
            side=self.validation.shown.shape[1],
            decoder=DECODER,
            resize=self.resize,
            seen=seen,
        )

    def _known_hashes(self) -> tuple[str, str]:
        """Returns the hash of the validation pixels, and the identities of the sample of training pictures.

        If they are still encoded, both are kept beside the pictures: decoding these takes as long as an evaluation, and
        every start asks for them.
        """
        sample = spread(len(self.train), SAMPLE)
        train, validation, store = self.train.facts, self.validation.facts, self.store
        if train is None or validation is None or store is None or store.kind == "decoded":
            return _hash_pixels(self.validation), "".join(identify(self.train, sample))
        shape = (self.validation.images.shape[1:], self.validation.side, self.resize, DECODER)
        described = repr(shape).encode() + np.ascontiguousarray(validation).tobytes() + train[sample].tobytes()
        path = store.folder / f"pixels-{hashlib.sha256(described).hexdigest()[:16]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, ChecksumError):
            known = unseal(json.loads(path.read_text()))
            return str(known["sha256"]), str(known["seen"])
        found = {"sha256": _hash_pixels(self.validation), "seen": "".join(identify(self.train, sample))}
        with contextlib.suppress(OSError):  # The disk may be full, or the folder another user's
            write_atomically(path, json.dumps(seal(found)) + "\n")
        return found["sha256"], found["seen"]

    def cropped(self, area: tuple[float, float] | None) -> "Dataset":
        """Returns a data set whose training pictures are cropped while they are decoded; see `Split.cropped`."""
        return dataclasses.replace(self, train=self.train.cropped(area))

    def hold_out(self, *, fraction: float, seed: int) -> "Dataset":
        """Returns a data set whose validation pictures are some of the training pictures.

        The validation pictures of this data set are dropped.

        Args:
          fraction: share held out of every class, rounded; each side keeps at least one picture of each class.
          seed: chooses which.

        Raises:
          UserError: a class has fewer than two training pictures.
        """
        # Shuffle all pictures, then sort them by class: the first ones of each class are held out.
        labels = self.train.labels
        order = np.random.default_rng(seed).permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        bounds = np.searchsorted(labels[order], np.arange(len(self.names) + 1))
        held_out = np.zeros(len(labels), bool)
        for name, (start, end) in zip(self.names, itertools.pairwise(bounds), strict=True):
            members = order[start:end]
            if len(members) < 2:
                found = "1 training picture" if len(members) else "no training pictures"
                raise UserError(
                    f"class {name!r} of {self.name} has {found}, but needs "
                    "one to train on and one to hold out for validation; add some or remove the class"
                )
            # At least one picture of the class stays on each side.
            count = min(max(round(len(members) * fraction), 1), len(members) - 1)
            held_out[members[:count]] = True
        # In the order of the data set, whatever the order in which they were drawn.
        return dataclasses.replace(
            self,
            train=self.train.select(np.flatnonzero(~held_out)),
            validation=self.train.select(np.flatnonzero(held_out)),
        )

    def without_validation(self) -> "Dataset":
        """Returns a data set with the training pictures alone."""
        return dataclasses.replace(self, validation=self.train.select(np.arange(0)))


def spread(count: int, most: int) -> Int64[np.ndarray, " rows"]:
    """Returns up to `most` of `count` rows, evenly spread, in their order."""
    return np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.int64)


def identify(split: Split, rows: Int64[np.ndarray, " rows"]) -> Iterator[str]:
    """Yields the identity of each picture at some rows, by its pixels; see `Fingerprint.seen`."""
    for start in range(0, len(rows), CHUNK):
        for picture in split.images[rows[start : start + CHUNK]]:
            yield hashlib.sha256(np.ascontiguousarray(picture)).hexdigest()[:DIGITS]


def _hash_pixels(split: Split) -> str:
    """Returns the SHA-256 of the pixels of all pictures, contiguous: every machine computes the same."""
    pixels = hashlib.sha256()
    for start in range(0, len(split), CHUNK):
        pixels.update(np.ascontiguousarray(split.images[start : start + CHUNK]))
    return pixels.hexdigest()
