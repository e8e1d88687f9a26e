"""A data set in memory-mapped arrays, and how some of its pictures are held out."""

import dataclasses
import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from jaxcnn.data.picture import DECODER
from jaxcnn.errors import UserError

CHUNK = 512
"""Pictures read at once where all of a split are read."""


@dataclass(frozen=True)
class Rows:
    """Some rows of an array in an order of their own; indexing reads only the rows asked for."""

    array: UInt8[np.ndarray, "m height width 3"]
    rows: Int64[np.ndarray, " n"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole selection."""
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """The pictures at an index, a slice, or an array of indices along the first axis."""
        return self.array[self.rows[index]]


@dataclass(frozen=True)
class Split:
    """Decoded pictures with their class indices; `images` is read from disk as it is indexed."""

    images: UInt8[np.ndarray, "n size size 3"] | UInt8[Rows, "n size size 3"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Int64[np.ndarray, " k"]) -> "Split":
        """The pictures at these positions; nothing is copied but their labels."""
        if isinstance(self.images, Rows):
            return Split(Rows(self.images.array, self.images.rows[rows]), self.labels[rows])
        return Split(Rows(self.images, rows), self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Identifies the split of a data set, to detect later that other pictures are held out.

    Attributes:
      train: number of training pictures.
      validation: number of validation pictures.
      labels: SHA-256 of the labels of both, in their order.
      pixels: SHA-256 of the validation pictures. Files that were exchanged or renamed leave the labels as they are, but
        not which pictures are held out.
      side: of the pictures.
      decoder: version of what decoded them; 0 in records that do not tell. Pictures of another side or decoder are not
        comparable by their pixels.
    """

    train: int
    validation: int
    labels: str
    pixels: str
    side: int
    decoder: int = 0

    def has_same_split(self, other: "Fingerprint") -> bool:
        """Whether the same pictures are held out, as far as it can be told."""
        mine, others = ((each.train, each.validation, each.labels) for each in (self, other))
        return mine == others and (self.pixels == other.pixels or not self.is_comparable(other))

    def is_comparable(self, other: "Fingerprint") -> bool:
        """Whether the same pictures have the same pixels in both."""
        return (self.side, self.decoder) == (other.side, other.decoder)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures to train on and pictures to validate with, and what their classes are called."""

    name: str
    names: tuple[str, ...]
    """Readable class names; the position is the class index."""
    wnids: tuple[str, ...]
    """WordNet identifiers in the order of `names`; empty if the classes have none."""
    license: str
    train: Split
    validation: Split

    def fingerprint(self) -> Fingerprint:
        """Reads the validation pictures, not those of training, which may be many times as many."""
        labels, pixels, images = hashlib.sha256(), hashlib.sha256(), self.validation.images
        for split in (self.train, self.validation):
            labels.update(f"{len(split)}:".encode() + split.labels.astype("<i4").tobytes())
        for start in range(0, len(images), CHUNK):
            pixels.update(np.ascontiguousarray(images[start : start + CHUNK]))
        return Fingerprint(
            train=len(self.train),
            validation=len(self.validation),
            labels=labels.hexdigest(),
            pixels=pixels.hexdigest(),
            side=images.shape[1],
            decoder=DECODER,
        )

    def hold_out(self, *, fraction: float, seed: int) -> "Dataset":
        """Returns a data set with some of the training pictures as its validation pictures, in place of its own.

        Args:
          fraction: share held out of every class, rounded; each side keeps at least one picture of each class.
          seed: chooses which.

        Raises:
          UserError: a class has fewer than two training pictures.
        """
        labels = self.train.labels
        order = np.random.default_rng(seed).permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]  # class by class, shuffled within each
        bounds = np.searchsorted(labels[order], np.arange(len(self.names) + 1))
        held_out = np.zeros(len(labels), bool)
        for name, (start, end) in zip(self.names, itertools.pairwise(bounds), strict=True):
            members = order[start:end]
            if len(members) < 2:
                found = "1 training picture" if len(members) else "no training pictures"
                raise UserError(
                    f"class {name!r} of {self.name} has {found}; "
                    "one for training and one held out for validation are the least: add some or remove the class"
                )
            count = min(max(round(len(members) * fraction), 1), len(members) - 1)
            held_out[members[:count]] = True
        return dataclasses.replace(
            self,
            train=self.train.select(np.flatnonzero(~held_out)),
            validation=self.train.select(np.flatnonzero(held_out)),
        )

    def without_validation(self) -> "Dataset":
        """Returns a data set with the training pictures alone."""
        return dataclasses.replace(self, validation=self.train.select(np.arange(0)))
