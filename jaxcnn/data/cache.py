"""Decoded pictures on disk: written once, completely or not at all, then memory-mapped."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxcnn.checksum import ChecksumError, checksum_chunks, seal, unseal
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.decoding import DECODER, Decoded, decode_file, decoding_threads
from jaxcnn.data.duplicates import Look, find_groups, look_at, make_thumbnail
from jaxcnn.data.resize import STRETCH, Resize
from jaxcnn.data.sources.encoded_dataset import EncodedDataset
from jaxcnn.data.sources.pictures import Picture, Pictures
from jaxcnn.data.sources.source import Source
from jaxcnn.data.split import Split, facts_type
from jaxcnn.disk import NO_ROOM, check_room, sync
from jaxcnn.errors import UserError

VERSION = 3
"""Version of the entries. Raise it when the same source would get other classes; older entries are decoded again."""

CHUNK = 2**25
"""Bytes of decoded pictures between two writes: 2,730 pictures of 64x64 pixels, or 10 of 1024x1024."""

MANY = 50_000
"""More pictures take seconds to compare, which is then said."""

LISTED = 10
"""Most unreadable pictures that one error message lists."""


type Decode = Callable[[Picture], Decoded]
"""Decodes a picture to the square that is kept."""


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


def load_cached(source: Source, *, size: int, resize: Resize = STRETCH, cache_dir: Path) -> Dataset:
    """Loads the pictures of a source for a model of `size` x `size` pixels; only the first call for a source decodes.

    An entry is a folder of `cache_dir`: `KEY-SIDE` with the side of its squares, and how they were made unless they
    were stretched with a bicubic filter, as in `KEY-256-crop` or `KEY-64-stretch-bilinear`. It is written under another
    name, and renamed once all of it has reached the disk. If several processes need it, one decodes and the others
    wait. A damaged entry is decoded again: all of it is compared with its checksums, which takes less time than the
    first epoch takes to read it.

    Raises:
      UserError: pictures cannot be read, or the entry cannot be written, as on a full disk.
    """
    # Without the lock: entries get their names only when they are complete.
    entry = cache_dir / "-".join([source.key, str(resize.stored(size)), *_suffixes(resize)])
    read = partial(_read_entry, entry, size=size, resize=resize)

    def decode_picture(picture: Picture) -> Decoded:
        return decode_file(picture.encoded, size=size, resize=resize, where=picture.where)

    dataset = read()
    if dataset is not None:
        return dataset

    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"{source.key}.lock"):
            dataset = read()  # Another process may have written it meanwhile
            if dataset is None:
                if entry.exists():
                    line = f"{entry} is damaged, or of another version: its pictures are decoded again"
                    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
                _write_entry(entry, source, decode_picture, resize.stored(size))
                dataset = read()
    except OSError as error:
        raise UserError(f"cannot write {entry}: {error.strerror or error}; choose another --data.cache_dir") from error
    if dataset is None:
        raise UserError(f"{entry} is not what was just written; check the disk, or choose another --data.cache_dir")
    return dataset


def _suffixes(resize: Resize) -> list[str]:
    """Returns the part of an entry's name that says how its squares were made; earlier versions only stretched."""
    if resize.filter != STRETCH.filter:
        return [resize.mode, resize.filter]
    return [] if resize.mode == STRETCH.mode else [resize.mode]


def _read_entry(entry: Path, *, size: int, resize: Resize) -> Dataset | None:
    """Maps an entry; returns None if it is missing, outdated or damaged."""
    try:
        meta = unseal(json.loads((entry / "entry.json").read_text()))
        if (meta["version"], meta["decoder"]) != (VERSION, DECODER):
            return None
        # Sizes, which take no time, detect most damage. Entries of earlier versions have no checksums.
        if any((entry / name).stat().st_size != size for name, size in meta["bytes"].items()):
            return None
        for name, checksums in meta.get("checksums", {}).items():
            if checksum_chunks(entry / name) != checksums:
                return None
        # Raises for entries of earlier versions with names that are not valid Unicode.
        "".join((meta["name"], *meta["names"])).encode()
        return Dataset(
            name=meta["name"],
            names=tuple(meta["names"]),
            wnids=tuple(meta["wnids"]),
            license=meta["license"],
            train=_map_split(entry, "train", classes=len(meta["names"]), side=size),
            validation=_map_split(entry, "validation", classes=len(meta["names"]), side=size),
            resize=resize,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ChecksumError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system releases even if the process is killed; prints a line if it has to wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print("waiting for another process that decodes the same pictures")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _map_split(entry: Path, split: str, *, classes: int, side: int) -> Split:
    images, labels = np.load(entry / f"{split}_images.npy", mmap_mode="r"), np.load(entry / f"{split}_labels.npy")
    # A negative label is one that the data set does not have; `load` decides whether such pictures matter.
    if len(labels) and labels.max() >= classes:
        raise ValueError("a label is of no class")
    return Split(images=images, labels=labels, side=side, facts=np.load(entry / f"{split}_facts.npy", mmap_mode="r"))


def _write_entry(entry: Path, source: Source, decode: Decode, size: int) -> None:
    """Decodes all pictures to `size` x `size` pixels into a new entry, which replaces an older one."""
    unfinished = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # Left by a killed process: this one holds the lock

    # Fail before decoding if the disk is too small.
    dataset = source.open()
    if dataset.passed_over:
        dots = ", ..." if len(dataset.passed_over) > LISTED else ""
        listed = ", ".join(dataset.passed_over[:LISTED])
        count = len(dataset.passed_over)
        said = (
            "1 file is passed over as no picture" if count == 1 else f"{count:,} files are passed over as no pictures"
        )
        line = f"{dataset.name}: {said}: {listed}{dots}"
        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
    need = dataset.count * size * size * 3
    check_room(
        entry.parent,
        need,
        what="the decoded pictures",
        advice="make room, choose another --data.cache_dir or a smaller --data.image_size",
    )

    # The old entry goes only when the new one is complete; a killed process leaves the unfinished one behind.
    try:
        unfinished.mkdir()
        _write_files(unfinished, dataset, decode, size)
        shutil.rmtree(entry, ignore_errors=True)
        unfinished.rename(entry)
        sync(entry.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(
                f"the disk is full: the decoded pictures take {need / 1e6:,.1f} MB in {entry.parent}; make room or "
                "choose another --data.cache_dir"
            ) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_files(folder: Path, dataset: EncodedDataset, decode: Decode, size: int) -> None:
    """Writes pictures, labels and description of an entry.

    Raises:
      UserError: pictures cannot be read; all are tried first, so that one message lists them.
      OSError: a file cannot be written.
    """
    errors: list[str] = []
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    with (
        _progress(f"decoding {dataset.name}", dataset.count) as advance,
        ThreadPoolExecutor(decoding_threads()) as pool,
    ):
        for split, pictures in (("train", dataset.train), ("validation", dataset.validation)):
            for row in _write_split(folder, split, pictures, decode, size=size, pool=pool, advance=advance):
                if isinstance(row, str):
                    errors.append(row)
                else:
                    rows[split].append(row)
    _check_readable(errors)
    _write_facts(folder, rows)

    # The description comes last: an entry without it does not exist.
    files = sorted(folder.iterdir())
    meta = {
        "version": VERSION,
        "decoder": DECODER,
        "name": dataset.name,
        "names": dataset.names,
        "wnids": dataset.wnids,
        "license": dataset.license,
        "bytes": {path.name: path.stat().st_size for path in files},
        "checksums": {path.name: checksum_chunks(path) for path in files},
    }
    (folder / "entry.json").write_text(json.dumps(seal(meta), indent=2) + "\n")
    for path in (*files, folder / "entry.json", folder):
        sync(path)


@contextlib.contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Draws a bar on stderr; yields a function that advances it by a number of pictures."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)


def _write_split(
    folder: Path,
    split: str,
    pictures: Pictures,
    decode: Decode,
    *,
    size: int,
    pool: Executor,
    advance: Callable[[int], None],
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
            advance(len(rows))
    np.save(folder / f"{split}_labels.npy", labels)


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


def _write_facts(folder: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """Writes `SPLIT_facts.npy` of both splits, after looking for pictures that occur more than once."""
    everything = [row for split in rows.values() for row in split]
    images = [np.load(folder / f"{split}_images.npy", mmap_mode="r") for split in rows]
    first = len(rows["train"])

    def thumbnail(place: int) -> UInt8[np.ndarray, "16 18 3"]:
        pixels = images[0][place] if place < first else images[1][place - first]
        return make_thumbnail(np.asarray(pixels))

    if len(everything) > MANY:
        Console(stderr=True).print(f"comparing {len(everything):,} pictures with one another", highlight=False)
    groups = find_groups([row.look for row in everything], thumbnail)
    # One record for each picture.
    names = [os.fsencode(row.file) for row in everything]
    facts = np.zeros(len(everything), facts_type(max(map(len, names), default=1)))
    facts["file"], facts["least"] = names, [row.least for row in everything]
    facts["is_gray"] = [row.look.is_gray for row in everything]
    for kind, found in zip(("same", "alike"), groups, strict=True):
        facts[kind] = -1
        for number, group in enumerate(found):
            facts[kind][list(group.rows)] = number
    np.save(folder / "train_facts.npy", facts[:first])
    np.save(folder / "validation_facts.npy", facts[first:])


def _check_readable(errors: list[str]) -> None:
    """Raises a UserError that lists the unreadable pictures, if there are any."""
    messages = list(dict.fromkeys(errors))  # An error of the whole source, such as a password, is the same for all
    if len(messages) == 1:
        raise UserError(messages[0])
    if messages:
        dots = ["..."] if len(messages) > LISTED else []
        raise UserError(f"{len(errors)} pictures cannot be read: {' | '.join(messages[:LISTED] + dots)}")
