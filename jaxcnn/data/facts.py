"""What is kept of each picture beside its pixels: its label, its file, and what duplicates are found by."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxcnn.data.duplicates import LOOK, Group, Look, find_groups, make_thumbnail
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.pictures import ListedPictures
from jaxcnn.data.split import facts_type
from jaxcnn.data.texts import Texts
from jaxcnn.terminal import stage

COMPARED = 500_000
"""Most pictures of which near duplicates are looked for: the time grows with the square of their number."""

WRITTEN = 2**16
"""Records of facts that are written at once."""


class Row(NamedTuple):
    """What is kept of a picture beside its pixels.

    Attributes:
      label: its class index.
      file: its path inside the folder or zip, or what else names it.
      least: its shorter side in pixels.
      look: what duplicates are found by.
    """

    label: int
    file: str
    least: int
    look: Look


class RowTable:
    """The rows of all pictures of a data set, training pictures first: 34 bytes for each.

    Attributes:
      columns: `label`, `least` and `look` of each picture, see `Row`.
    """

    def __init__(self, dataset: EncodedDataset) -> None:
        """Makes room for all rows."""
        self.columns = np.zeros(dataset.count, [("label", "<i4"), ("least", "<i4"), ("look", LOOK)])
        self._splits = (dataset.train, dataset.validation)
        self._files = Texts()
        self._count = 0

    def __len__(self) -> int:
        return len(self.columns)

    def append(self, row: Row) -> None:
        """Enters the row of the next picture."""
        train, validation = self._splits
        self.columns[self._count] = (row.label, row.least, row.look)
        # Names that the source has listed are not kept a second time.
        if not isinstance(train if self._count < len(train) else validation, ListedPictures):
            self._files.append(row.file)
        self._count += 1

    def places(self, split: str) -> range:
        """Returns which rows belong to a split."""
        first = len(self._splits[0])
        return range(first) if split == "train" else range(first, len(self))

    def files(self) -> Iterator[str]:
        """Yields the `file` of each row."""
        unlisted = iter(self._files)
        for pictures in self._splits:
            if isinstance(pictures, ListedPictures):
                yield from (file for file, _ in pictures.listed())
            else:
                yield from islice(unlisted, len(pictures))


def write_facts(
    folder: Path, table: RowTable, pixels: Callable[[str, int], UInt8[np.ndarray, "height width 3"]]
) -> None:
    """Writes `SPLIT_facts.npy` of both splits, after looking for pictures that occur more than once.

    Args:
      folder: the entry.
      table: what is kept of the pictures.
      pixels: returns a picture by its split and position; called from several threads.
    """
    first = len(table.places("train"))
    if len(table) > COMPARED:
        table.columns["look"]["is_comparable"] = False

    def thumbnail(place: int) -> UInt8[np.ndarray, "16 18 3"]:
        found = pixels("train", place) if place < first else pixels("validation", place - first)
        return make_thumbnail(np.asarray(found))

    with stage(f"comparing {len(table):,} pictures with one another"):
        groups = find_groups(table.columns["look"], thumbnail)
    numbers = {kind: _number(found, len(table)) for kind, found in zip(("same", "alike"), groups, strict=True)}
    record = facts_type(max((len(os.fsencode(file)) for file in table.files()), default=1))
    files = table.files()
    for split in ("train", "validation"):
        _write_records(folder / f"{split}_facts.npy", table, table.places(split), record, files=files, numbers=numbers)


def _number(groups: Sequence[Group], count: int) -> Int32[np.ndarray, " {count}"]:
    """Returns for each of `count` pictures the number of its group, or -1."""
    numbers = np.full(count, -1, np.int32)
    for number, group in enumerate(groups):
        numbers[list(group.rows)] = number
    return numbers


def _write_records(
    path: Path,
    table: RowTable,
    places: range,
    record: np.dtype[Any],
    *,
    files: Iterator[str],
    numbers: Mapping[str, Int32[np.ndarray, " all"]],
) -> None:
    """Writes the facts of some pictures as `np.save` does, but a part at a time: they may be ten million."""
    with path.open("wb") as output:
        header = {"descr": np.lib.format.dtype_to_descr(record), "fortran_order": False, "shape": (len(places),)}
        np.lib.format.write_array_header_1_0(output, header)
        for start in range(places.start, places.stop, WRITTEN):
            part = slice(start, min(start + WRITTEN, places.stop))
            facts = np.zeros(part.stop - part.start, record)
            facts["file"] = [os.fsencode(name) for name in islice(files, len(facts))]
            facts["same"], facts["alike"] = numbers["same"][part], numbers["alike"][part]
            facts["least"] = table.columns["least"][part]
            facts["is_gray"] = table.columns["look"]["is_gray"][part]
            output.write(facts.tobytes())
