"""Encoded pictures on disk: copied once into a few large files, and decoded whenever they are read.

For data sets that are too large to be kept decoded.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from jaxcnn.data.dataset import Dataset, Store
from jaxcnn.data.decoding import decode_file, decoding_threads
from jaxcnn.data.duplicates import look_at
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.encoded_images import EncodedImages
from jaxcnn.data.entry import (
    DAMAGED,
    check_readable,
    lock_path,
    open_entry,
    print_passed_over,
    read_description,
    read_labels,
    replaced,
    save_array,
    write_description,
)
from jaxcnn.data.facts import Row, RowTable, write_facts
from jaxcnn.data.pictures import Pictures
from jaxcnn.data.resize import STRETCH, Resize
from jaxcnn.data.shards import Shards, ShardWriter, describe_shards, has_array_record, known_counts
from jaxcnn.data.source import Source
from jaxcnn.data.split import Split, facts_type
from jaxcnn.disk import check_room
from jaxcnn.errors import UserError
from jaxcnn.terminal import open_bar

VERSION = 1
"""Version of the entries. Raise it when the same source would get other classes or files; older ones are replaced."""

LOOK = 64
"""Side of the squares that pictures are compared as, whatever size they are trained at."""

CHUNK = 256
"""Pictures that are read between two writes."""

SAMPLED = 64
"""Pictures that are read to estimate the size of all, or to see whether they have the labels of an entry."""


def load_encoded(source: Source, *, size: int, resize: Resize = STRETCH, cache_dir: Path) -> Dataset:
    """Loads the pictures of a source; only the first call for a source reads all of them, to check and to copy them.

    An entry is the folder `KEY-encoded` of `cache_dir`, whatever the size of the pictures. Pictures that lie in
    ArrayRecord files already are not copied.

    Raises:
      UserError: pictures cannot be read, or the entry cannot be written, as on a full disk.
    """
    if not has_array_record():
        raise UserError(
            "encoded pictures need the package array-record, which is not for Windows; give --data.store decoded"
        )
    entry = _entry_path(source, cache_dir)
    return open_entry(
        entry,
        lock_path(source, cache_dir),
        read=partial(_read_entry, entry, source, size=size, resize=resize),
        write=lambda: _write_entry(entry, source.open()),
    )


def count_encoded(source: Source, *, cache_dir: Path) -> int | None:
    """Returns the number of pictures in the entry of a source, without opening it; None if there is no whole entry."""
    entry, count = _entry_path(source, cache_dir), 0
    try:
        for split in ("train", "validation"):
            count += len(np.load(entry / f"{split}_labels.npy", mmap_mode="r"))
    except DAMAGED:
        return None
    return count


def _entry_path(source: Source, cache_dir: Path) -> Path:
    return cache_dir / f"{source.key}-encoded"


def _read_entry(entry: Path, source: Source, *, size: int, resize: Resize) -> Dataset | None:
    """Opens an entry; returns None if it is missing, outdated or damaged.

    Only labels and facts are compared with their checksums: pictures have checksums in their files, which are compared
    whenever they are read.
    """
    try:
        meta = read_description(entry, version=VERSION)
        if meta is None:
            return None
        classes = len(meta["names"])
        labels = {split: read_labels(entry, split, classes=classes) for split in ("train", "validation")}
        facts = {split: np.load(entry / f"{split}_facts.npy", mmap_mode="r") for split in labels}
        if meta["shards"] is None:
            dataset = source.open()
            pictures: dict[str, Pictures] = {"train": dataset.train, "validation": dataset.validation}
            if not all(_has_labels(pictures[split], labels[split]) for split in labels):
                return None  # Prepared again, with other pictures or in another order
        else:
            counts = known_counts(entry, meta)
            pictures = {
                split: Shards.open(
                    entry, meta["shards"][split], labels=labels[split], facts=facts[split], counts=counts
                )
                for split in labels
            }
        train, validation = (
            Split(EncodedImages(pictures[split], size, resize), labels[split], size, facts[split]) for split in labels
        )
        return Dataset(
            name=meta["name"],
            names=tuple(meta["names"]),
            wnids=tuple(meta["wnids"]),
            license=meta["license"],
            train=train,
            validation=validation,
            resize=resize,
            store=Store("encoded", entry, sum(meta["bytes"].values())),
        )
    except DAMAGED:
        return None


def _has_labels(pictures: Pictures, labels: Int32[np.ndarray, " n"]) -> bool:
    """Returns whether some of the pictures still have their labels; raises UserError as `Pictures`."""
    if len(pictures) != len(labels):
        return False
    return all(pictures[place].label == labels[place] for place in _some_places(len(labels)))


def _write_entry(entry: Path, dataset: EncodedDataset) -> None:
    """Checks all pictures and copies them into a new entry, which replaces an older one.

    Raises:
      UserError: pictures cannot be read; all are tried first, so that one message lists them.
      OSError: a file cannot be written.
    """
    print_passed_over(dataset)
    errors: list[str] = []
    table = RowTable(dataset)
    writers: dict[str, ShardWriter] = {}
    splits = {"train": dataset.train, "validation": dataset.validation}
    with replaced(entry, what="there is no room for a copy of the encoded pictures") as folder:
        if not dataset.in_records:
            check_room(
                entry.parent,
                _expected_bytes(dataset),
                what="copies of the encoded pictures",
                advice="make room or choose another --data.cache_dir",
            )
        with (
            open_bar(f"reading {dataset.name}", total=dataset.count, is_kept=True) as update,
            ThreadPoolExecutor(decoding_threads()) as pool,
        ):
            for split, pictures in splits.items():
                with ShardWriter(folder, split) as writers[split]:
                    copy = None if dataset.in_records else writers[split].write
                    for row in _read_rows(pictures, copy=copy, pool=pool):
                        if isinstance(row, str):
                            errors.append(row)
                        else:
                            table.append(row)
                        update(advance=1)
        check_readable(errors)
        _write_labels_and_facts(folder, table, splits, {} if dataset.in_records else writers)
        write_description(
            folder,
            dataset,
            checked=sorted(folder.glob("*.npy")),
            version=VERSION,
            **({"shards": None} if dataset.in_records else describe_shards(folder, writers)),
        )


def _expected_bytes(dataset: EncodedDataset) -> int:
    """Returns about how many bytes all pictures take, or a little less, by some of them."""
    sizes = []
    for place in _some_places(len(dataset.train)):
        with contextlib.suppress(UserError):  # All that cannot be read are listed later
            sizes.append(len(dataset.train[place].encoded))
    return round(0.8 * dataset.count * sum(sizes) / max(len(sizes), 1))


def _some_places(count: int) -> list[int]:
    """Returns at most `SAMPLED` positions among some pictures, from the first to the last."""
    places: list[int] = np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int)).tolist()
    return places


def _read_rows(pictures: Pictures, *, copy: Callable[[bytes], None] | None, pool: Executor) -> Iterator[Row | str]:
    """Yields the row of each picture, or why it cannot be read, after copying it."""

    def read(place: int) -> tuple[bytes, Row | str]:
        try:
            picture = pictures[place]
            decoded = decode_file(picture.encoded, size=LOOK, where=picture.where)
        except UserError as error:  # Only its message: the traceback would keep the file in memory
            return b"", str(error)
        least = min(decoded.width, decoded.height)
        look = look_at(decoded.pixels, shorter_side=least)
        return picture.encoded, Row(picture.label, picture.file or picture.where, least, look)

    for start in range(0, len(pictures), CHUNK):
        for encoded, row in pool.map(read, range(start, min(start + CHUNK, len(pictures)))):
            if copy is not None:
                copy(encoded)
            yield row


def _write_labels_and_facts(
    folder: Path, table: RowTable, splits: dict[str, Pictures], writers: Mapping[str, ShardWriter]
) -> None:
    """Writes `SPLIT_labels.npy` and `SPLIT_facts.npy` of both splits.

    Args:
      folder: the entry.
      table: what is kept of the pictures.
      splits: the pictures.
      writers: who has copied the pictures of each split; empty if nobody has.
    """
    images = {}
    for split, pictures in splits.items():
        places = table.places(split)
        labels = np.ascontiguousarray(table.columns["label"][places.start : places.stop])
        save_array(folder / f"{split}_labels.npy", labels)
        # Copies are read in any order at once; a Parquet file would be read by row group for each picture.
        if writer := writers.get(split):
            counts = dict(zip(writer.names, writer.counts, strict=True))
            nameless = np.zeros(len(labels), facts_type(1))
            pictures = Shards.open(folder, writer.names, labels=labels, facts=nameless, counts=counts)
        images[split] = EncodedImages(pictures, LOOK, STRETCH)
    write_facts(folder, table, lambda split, place: images[split][place])
