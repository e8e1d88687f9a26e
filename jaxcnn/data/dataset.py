"""A data set whose pictures are read when they are needed."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxcnn.checksum import ChecksumError, seal, unseal
from jaxcnn.data.decoding import DECODER
from jaxcnn.data.fingerprint import Fingerprint
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
        """Identifies the split; reads all validation pictures, but none of the many training pictures."""
        # Little-endian labels, so that every machine computes the same hash.
        labels = hashlib.sha256()
        for split in (self.train, self.validation):
            labels.update(f"{len(split)}:".encode() + split.labels.astype("<i4").tobytes())
        return Fingerprint(
            train=len(self.train),
            validation=len(self.validation),
            labels=labels.hexdigest(),
            pixels=self._known_hash() or _hash_pixels(self.validation),
            side=self.validation.shown.shape[1],
            decoder=DECODER,
            resize=self.resize,
        )

    def _known_hash(self) -> str | None:
        """Returns the hash of the validation pixels if they are still encoded; None otherwise.

        It is kept beside the pictures: decoding them takes as long as an evaluation, and every start asks for it.
        """
        facts, store = self.validation.facts, self.store
        if facts is None or store is None or store.kind == "decoded":
            return None
        shape = (self.validation.images.shape[1:], self.validation.side, self.resize, DECODER)
        key = hashlib.sha256(repr(shape).encode() + np.ascontiguousarray(facts).tobytes()).hexdigest()
        path = store.folder / f"pixels-{key[:16]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, ChecksumError):
            return str(unseal(json.loads(path.read_text()))["sha256"])
        found = _hash_pixels(self.validation)
        with contextlib.suppress(OSError):  # The disk may be full, or the folder another user's
            write_atomically(path, json.dumps(seal({"sha256": found})) + "\n")
        return found

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


def _hash_pixels(split: Split) -> str:
    """Returns the SHA-256 of the pixels of all pictures, contiguous: every machine computes the same."""
    pixels = hashlib.sha256()
    for start in range(0, len(split), CHUNK):
        pixels.update(np.ascontiguousarray(split.images[start : start + CHUNK]))
    return pixels.hexdigest()
