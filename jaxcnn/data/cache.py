"""Decoded pictures on disk: written once, completely or not at all, then memory-mapped."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxcnn.data.dataset import Dataset, Store
from jaxcnn.data.decoding import Decoded, decode_file, decoding_threads
from jaxcnn.data.duplicates import look_at
from jaxcnn.data.encoded_dataset import EncodedDataset
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
from jaxcnn.data.pictures import Picture, Pictures
from jaxcnn.data.resize import STRETCH, Resize
from jaxcnn.data.source import Source
from jaxcnn.data.split import Split
from jaxcnn.disk import check_room
from jaxcnn.errors import UserError
from jaxcnn.terminal import open_bar

VERSION = 3
"""Version of the entries. Raise it when the same source would get other classes; older entries are decoded again."""

CHUNK = 2**25
"""Bytes of decoded pictures between two writes: 2,730 pictures of 64x64 pixels, or 10 of 1024x1024."""


type Decode = Callable[[Picture], Decoded]
"""Decodes a picture to the square that is kept."""


def load_cached(source: Source, *, size: int, resize: Resize = STRETCH, cache_dir: Path) -> Dataset:
    """Loads the pictures of a source for a model of `size` x `size` pixels; only the first call for a source decodes.

    An entry is a folder of `cache_dir`, see `entry_path`. It is written under another name, and renamed once all of it
    has reached the disk. If several processes need it, one decodes and the others wait. A damaged entry is decoded
    again: all of it is compared with its checksums, which takes less time than the first epoch takes to read it.

    Raises:
      UserError: pictures cannot be read, or the entry cannot be written, as on a full disk.
    """
    entry = entry_path(source, size=size, resize=resize, cache_dir=cache_dir)

    def decode_picture(picture: Picture) -> Decoded:
        return decode_file(picture.encoded, size=size, resize=resize, where=picture.where)

    return open_entry(
        entry,
        lock_path(source, cache_dir),
        read=partial(_read_entry, entry, size=size, resize=resize),
        write=lambda: _write_entry(entry, source, decode_picture, resize.stored(size)),
    )


def entry_path(source: Source, *, size: int, resize: Resize, cache_dir: Path) -> Path:
    """Returns the folder of an entry: `KEY-SIDE` with the side of its squares, and how they were made.

    That is left out if they were stretched with a bicubic filter: `KEY-64`, `KEY-256-crop`, `KEY-64-stretch-bilinear`.
    """
    return cache_dir / "-".join([source.key, str(resize.stored(size)), *_suffixes(resize)])


def _suffixes(resize: Resize) -> list[str]:
    """Returns the part of an entry's name that says how its squares were made; earlier versions only stretched."""
    if resize.filter != STRETCH.filter:
        return [resize.mode, resize.filter]
    return [] if resize.mode == STRETCH.mode else [resize.mode]


def _read_entry(entry: Path, *, size: int, resize: Resize) -> Dataset | None:
    """Maps an entry; returns None if it is missing, outdated or damaged."""
    try:
        meta = read_description(entry, version=VERSION)
        if meta is None:
            return None
        return Dataset(
            name=meta["name"],
            names=tuple(meta["names"]),
            wnids=tuple(meta["wnids"]),
            license=meta["license"],
            train=_map_split(entry, "train", classes=len(meta["names"]), side=size),
            validation=_map_split(entry, "validation", classes=len(meta["names"]), side=size),
            resize=resize,
            store=Store("decoded", entry, sum(meta["bytes"].values())),
        )
    except DAMAGED:
        return None


def _map_split(entry: Path, split: str, *, classes: int, side: int) -> Split:
    images, labels = np.load(entry / f"{split}_images.npy", mmap_mode="r"), read_labels(entry, split, classes=classes)
    return Split(images=images, labels=labels, side=side, facts=np.load(entry / f"{split}_facts.npy", mmap_mode="r"))


def _write_entry(entry: Path, source: Source, decode: Decode, size: int) -> None:
    """Decodes all pictures to `size` x `size` pixels into a new entry, which replaces an older one."""
    dataset = source.open()
    print_passed_over(dataset)
    need = dataset.count * size * size * 3
    with replaced(entry, what=f"the decoded pictures take {need / 1e6:,.1f} MB") as folder:
        # Fail before decoding if the disk is too small.
        check_room(
            entry.parent,
            need,
            what="the decoded pictures",
            advice="make room, choose another --data.cache_dir or a smaller --data.image_size",
        )
        _write_files(folder, dataset, decode, size)


def _write_files(folder: Path, dataset: EncodedDataset, decode: Decode, size: int) -> None:
    """Writes pictures, labels and description of an entry.

    Raises:
      UserError: pictures cannot be read; all are tried first, so that one message lists them.
      OSError: a file cannot be written.
    """
    errors: list[str] = []
    table = RowTable(dataset)
    with (
        open_bar(f"decoding {dataset.name}", total=dataset.count, is_kept=True) as update,
        ThreadPoolExecutor(decoding_threads()) as pool,
    ):
        for split, pictures in (("train", dataset.train), ("validation", dataset.validation)):
            for row in _write_split(folder, split, pictures, decode, size=size, pool=pool, update=update):
                if isinstance(row, str):
                    errors.append(row)
                else:
                    table.append(row)
    check_readable(errors)
    images = {split: np.load(folder / f"{split}_images.npy", mmap_mode="r") for split in ("train", "validation")}
    write_facts(folder, table, lambda split, place: images[split][place])
    write_description(folder, dataset, checked=sorted(folder.iterdir()), version=VERSION)


def _write_split(
    folder: Path,
    split: str,
    pictures: Pictures,
    decode: Decode,
    *,
    size: int,
    pool: Executor,
    update: Callable[..., None],
) -> Iterator[Row | str]:
    """Writes `SPLIT_images.npy` and `SPLIT_labels.npy`; yields the row of each picture, or why it cannot be read."""
    labels = np.empty(len(pictures), np.int32)
    step = max(CHUNK // (size * size * 3), 1)
    with (folder / f"{split}_images.npy").open("wb") as file:
        shape = (len(pictures), size, size, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        # Written, not memory-mapped: on a full disk a write raises an error, a mapped page kills the process.
        for start in range(0, len(pictures), step):
            places = range(start, min(start + step, len(pictures)))
            images, rows = _decode_rows(pictures, places, decode, size=size, pool=pool)
            labels[places.start : places.stop] = [-1 if isinstance(row, str) else row.label for row in rows]
            file.write(images.data)
            yield from rows
            update(advance=len(rows))
    save_array(folder / f"{split}_labels.npy", labels)


def _decode_rows(
    pictures: Pictures, places: range, decode: Decode, *, size: int, pool: Executor
) -> tuple[UInt8[np.ndarray, "rows {size} {size} 3"], list[Row | str]]:
    """Returns the pixels of some pictures, and the row of each, or why it cannot be read; it is then black."""

    def read(place: int) -> tuple[np.ndarray, Row | str]:
        try:
            picture = pictures[place]
            pixels, width, height, _ = decode(picture)
        except UserError as error:  # Only its message: the traceback would keep the file in memory
            return np.zeros((size, size, 3), np.uint8), str(error)
        least = min(width, height)
        return pixels, Row(picture.label, picture.file or picture.where, least, look_at(pixels, shorter_side=least))

    images, rows = zip(*pool.map(read, places), strict=True)
    return np.stack(images), list(rows)
