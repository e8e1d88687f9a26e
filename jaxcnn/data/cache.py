"""Decoded pictures on disk: written once, whole or not at all, and memory-mapped from then on."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.data.picture import DECODER, decode
from jaxcnn.data.source import NO_ROOM, Opened, Pictures, Source
from jaxcnn.disk import sync
from jaxcnn.errors import UserError

VERSION = 2
"""Raise it when the same source would be read as other classes, or as `DECODER`: older entries are then made anew."""

CHUNK = 2**25
"""Bytes of decoded pictures between two writes: 2,730 pictures of 64x64 pixels, or 10 of 1024x1024."""

THREADS = 16
"""Most threads that decode; each has a whole picture in memory."""

NAMED = 10
"""Most pictures that cannot be read of which a message tells."""


def load_cached(source: Source, *, size: int, cache_dir: Path) -> Dataset:
    """The pictures of a source, decoded to `size` x `size` pixels; only the first call for a source decodes.

    An entry is a folder `KEY-SIZE` of `cache_dir`. It is written under another name and renamed when all of it has
    reached the disk. Of several processes one decodes and the others wait. An entry whose files do not fit together is
    decoded anew.

    Raises:
      UserError: pictures cannot be read, or the entry cannot be written, for want of room for example.
    """
    entry = cache_dir / f"{source.key}-{size}"
    dataset = _read_entry(entry)
    if dataset is not None:
        return dataset
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"{source.key}.lock"):
            dataset = _read_entry(entry)  # another process may have written it while this one waited
            if dataset is None:
                _write_entry(entry, source, size)
                dataset = _read_entry(entry)
    except OSError as error:
        raise UserError(f"cannot write {entry}: {error.strerror or error}; choose another --data.cache_dir") from error
    if dataset is None:
        raise UserError(f"{entry} is not what was just written; check the disk, or choose another --data.cache_dir")
    return dataset


def _read_entry(entry: Path) -> Dataset | None:
    """Maps an entry; None if there is none, or its files have not the sizes that were written."""
    try:
        meta = json.loads((entry / "entry.json").read_text())
        if (meta["version"], meta["decoder"]) != (VERSION, DECODER):
            return None
        if any((entry / name).stat().st_size != n for name, n in meta["bytes"].items()):
            return None
        "".join((meta["name"], *meta["names"])).encode()  # raises for names of before they were made `readable`
        return Dataset(
            name=meta["name"],
            names=tuple(meta["names"]),
            wnids=tuple(meta["wnids"]),
            license=meta["license"],
            train=_map_split(entry, "train"),
            validation=_map_split(entry, "validation"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system lets go of even when the process is killed; says so if it has to wait."""
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


def _map_split(entry: Path, split: str) -> Split:
    images = np.load(entry / f"{split}_images.npy", mmap_mode="r")
    return Split(images=images, labels=np.load(entry / f"{split}_labels.npy"))


def _write_entry(entry: Path, source: Source, size: int) -> None:
    """Decodes all pictures into a new entry in place of an older one."""
    partial = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
    opened = source.open()
    need = (len(opened.train) + len(opened.validation)) * size * size * 3
    room = f"the decoded pictures take {need / 1e6:,.1f} MB in {entry.parent}"
    if need > shutil.disk_usage(entry.parent).free:
        raise UserError(f"the disk is too full: {room}; make room or choose another --data.cache_dir")
    try:
        partial.mkdir()
        _write_files(partial, opened, size)
        shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
        sync(entry.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(f"the disk is full: {room}; make room or choose another --data.cache_dir") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(folder: Path, opened: Opened, size: int) -> None:
    """Decodes every picture, even after some that cannot be read, so that all of them are told at once."""
    unread: list[str] = []
    step = max(CHUNK // (size * size * 3), 1)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(_threads()) as pool,  # threads: Pillow decodes and resizes without the interpreter lock
    ):
        task = progress.add_task(f"decoding {opened.name}", total=len(opened.train) + len(opened.validation))
        for split, pictures in (("train", opened.train), ("validation", opened.validation)):
            labels = np.empty(len(pictures), np.int32)
            with (folder / f"{split}_images.npy").open("wb") as file:
                shape = (len(pictures), size, size, 3)
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                # Written, not mapped: on a full disk a write raises an error, a touched page kills the process.
                for start in range(0, len(pictures), step):
                    rows = range(start, min(start + step, len(pictures)))
                    images, labels[rows.start : rows.stop], errors = _decode_rows(pool, pictures, rows, size)
                    file.write(images.data)
                    unread += errors
                    progress.advance(task, len(rows))
            np.save(folder / f"{split}_labels.npy", labels)
    _refuse(unread)
    files = sorted(folder.iterdir())
    meta = {
        "version": VERSION,
        "decoder": DECODER,
        "name": opened.name,
        "names": opened.names,
        "wnids": opened.wnids,
        "license": opened.license,
        "bytes": {file.name: file.stat().st_size for file in files},
    }
    (folder / "entry.json").write_text(json.dumps(meta, indent=2) + "\n")
    for path in (*files, folder / "entry.json", folder):
        sync(path)


def _threads() -> int:
    """As many as there are cores that this process may use, but at most `THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, THREADS)


def _decode_rows(pool: Executor, pictures: Pictures, rows: range, size: int) -> tuple[np.ndarray, list[int], list[str]]:
    """Pictures and labels of some rows, and what is wrong with those that cannot be read, which are black."""

    def read(row: int) -> tuple[np.ndarray, int, str]:
        try:
            picture = pictures[row]
            return decode(picture.encoded, size=size, where=picture.where), picture.label, ""
        except UserError as error:  # its message only: the traceback would keep the file in memory
            return np.zeros((size, size, 3), np.uint8), -1, str(error)

    images, labels, errors = zip(*pool.map(read, rows), strict=True)
    return np.stack(images), list(labels), list(filter(None, errors))


def _refuse(unread: list[str]) -> None:
    """Raises a `UserError` that tells what is wrong with pictures, if there are any."""
    messages = list(dict.fromkeys(unread))  # those of a zip with a password have all the same
    if len(messages) == 1:
        raise UserError(messages[0])
    if messages:
        dots = ["..."] if len(messages) > NAMED else []
        raise UserError(f"{len(unread)} pictures cannot be read: {' | '.join(messages[:NAMED] + dots)}")
