"""What all entries of the cache share: each is a folder that is written once, completely or not at all."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from filelock import FileLock, SoftFileLock, Timeout
from jaxtyping import Int32

from jaxcnn.checksum import ChecksumError, checksum_chunks, seal, unseal
from jaxcnn.cli import printable
from jaxcnn.data.decoding import DECODER
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.source import Source
from jaxcnn.disk import NO_ROOM, sync, write_atomically
from jaxcnn.errors import UserError
from jaxcnn.terminal import console

LISTED = 10
"""Most unreadable pictures that one error message lists."""

HASHED = 2**32
"""Bytes of an entry that are compared with their checksums at every start, which takes seconds. The files of a larger
entry are compared again once one of them has changed."""

DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,
    KeyError,
    TypeError,
    AttributeError,
    ChecksumError,
    TokenError,  # NumPy, for the header of an array
    SyntaxError,  # NumPy, for the type in it
)
"""What reading a damaged entry raises."""


def open_entry[Opened](
    entry: Path, lock: Path, *, read: Callable[[], Opened | None], write: Callable[[], None]
) -> Opened:
    """Reads an entry of the cache, after writing it if it is missing, outdated or damaged.

    It is read without the lock: entries get their names only when they are complete. If several processes need it, one
    writes and the others wait.

    Args:
      entry: the folder.
      lock: the file that processes lock which write it.
      read: returns what is in the entry; None if it has to be written.
      write: writes it.

    Raises:
      UserError: the entry cannot be written, as on a full disk.
    """
    found = read()
    if found is not None:
        return found
    with locked(entry, lock):
        found = read()  # Another process may have written it meanwhile
        if found is None:
            if entry.exists():
                print_line(f"{entry} is damaged, or of another version: its pictures are decoded again")
            write()
            found = read()
    if found is None:
        raise UserError(f"{entry} is not what was just written; check the disk, or choose another --data.cache_dir")
    return found


@contextlib.contextmanager
def replaced(entry: Path, *, what: str) -> Iterator[Path]:
    """Yields a new folder, which replaces an entry at the end; after an error the entry is as it was.

    Args:
      entry: the folder that is replaced.
      what: says in the message of an error what takes how much room.

    Raises:
      UserError: the disk is full.
      OSError: a file cannot be written.
    """
    unfinished = remove_unfinished(entry)
    # The old entry goes only when the new one is complete; a killed process leaves the unfinished one behind.
    try:
        unfinished.mkdir()
        yield unfinished
        shutil.rmtree(entry, ignore_errors=True)
        unfinished.rename(entry)
        sync(entry.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(
                f"the disk is full: {what} in {entry.parent}; make room or choose another --data.cache_dir"
            ) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_unfinished(entry: Path) -> Path:
    """Removes what a killed process has left of an entry, and returns the path; the caller holds the lock."""
    unfinished = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    return unfinished


def write_description(folder: Path, dataset: EncodedDataset, *, checked: Sequence[Path], **more: Any) -> None:
    """Writes `entry.json`, without which an entry does not exist, and waits until all of it has reached the disk.

    Args:
      folder: the entry.
      dataset: whose pictures are in it.
      checked: files that are compared with their checksums whenever the entry is read.
      more: what else is recorded.
    """
    files = sorted(folder.iterdir())
    meta = {
        **more,
        "decoder": DECODER,
        "name": dataset.name,
        "names": dataset.names,
        "wnids": dataset.wnids,
        "license": dataset.license,
        "bytes": {path.name: path.stat().st_size for path in files},
        "checksums": {path.name: checksum_chunks(path) for path in checked},
    }
    (folder / "entry.json").write_text(json.dumps(seal(meta), indent=2) + "\n")
    for path in (*files, folder / "entry.json", folder):
        sync(path)


def read_description(entry: Path, *, version: int) -> dict[str, Any] | None:
    """Reads `entry.json`; returns None if the entry is of another version, or not all of its files are whole.

    Raises:
      OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, ChecksumError: it is damaged.
    """
    meta: dict[str, Any] = unseal(json.loads((entry / "entry.json").read_text()))
    if (meta["version"], meta["decoder"]) != (version, DECODER):
        return None
    # Sizes, which take no time, detect most damage. Entries of earlier versions have no checksums.
    if any((entry / name).stat().st_size != size for name, size in meta["bytes"].items()):
        return None
    if not _has_checksums(entry, meta.get("checksums", {})):
        return None
    # Raises for entries of earlier versions with names that are not valid Unicode.
    "".join((meta["name"], *meta["names"])).encode()
    return meta


def _has_checksums(entry: Path, checksums: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether files of an entry have their checksums; `compared.json` says which ones of a large entry had."""
    stats = {name: (entry / name).stat() for name in checksums}
    times = {name: stat.st_mtime_ns for name, stat in stats.items()}
    is_large, compared = sum(stat.st_size for stat in stats.values()) > HASHED, entry / "compared.json"
    if is_large:
        with contextlib.suppress(OSError, ValueError, ChecksumError):
            if unseal(json.loads(compared.read_text())) == times:
                return True
    if any(checksum_chunks(entry / name) != expected for name, expected in checksums.items()):
        return False
    if is_large:
        with contextlib.suppress(OSError):  # The disk may be full, or the folder another user's
            write_atomically(compared, json.dumps(seal(times)) + "\n")
    return True


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as `np.save` does, which on a full disk says little, or nothing and leaves a part of the file.

    Raises:
      OSError: the file cannot be written.
    """
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(values.data)


def lock_path(source: Source, cache_dir: Path) -> Path:
    """Returns the file that is locked while an entry of a source is written, of whatever size."""
    return cache_dir / f"{source.key}.lock"


@contextlib.contextmanager
def locked(entry: Path, path: Path) -> Iterator[None]:
    """Holds a lock that the system releases even if the process is killed; prints a line if it has to wait.

    Args:
      entry: the entry that is to be written.
      path: the file that processes lock which write it.

    Raises:
      UserError: the system raised an error here or in the block.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            # On a drive without locks, nobody removes the file of a process that was killed on another machine.
            killed = f"; if it was killed, remove {path}" if isinstance(lock, SoftFileLock) else ""
            print_line(f"waiting for another process that decodes the same pictures{killed}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise UserError(f"cannot write {entry}: {error.strerror or error}; choose another --data.cache_dir") from error


def read_labels(entry: Path, split: str, *, classes: int) -> Int32[np.ndarray, " n"]:
    """Reads `SPLIT_labels.npy`. A negative label is one that the data set does not have.

    Raises:
      OSError, ValueError: the file is damaged.
    """
    labels: Int32[np.ndarray, " n"] = np.load(entry / f"{split}_labels.npy")
    # `load` decides whether pictures without a label matter.
    if len(labels) and labels.max() >= classes:
        raise ValueError("a label is of no class")
    return labels


def print_passed_over(dataset: EncodedDataset) -> None:
    """Prints which files of a data set are no pictures, if there are any."""
    if not dataset.passed_over:
        return
    dots = ", ..." if len(dataset.passed_over) > LISTED else ""
    listed = ", ".join(dataset.passed_over[:LISTED])
    count = len(dataset.passed_over)
    said = "1 file is passed over as no picture" if count == 1 else f"{count:,} files are passed over as no pictures"
    print_line(f"{dataset.name}: {said}: {listed}{dots}")


def print_line(text: str) -> None:
    """Prints a line on stderr; names of files may hold what controls a terminal."""
    console.print(printable(text), soft_wrap=True)


def check_readable(errors: list[str]) -> None:
    """Raises a UserError that lists the unreadable pictures, if there are any."""
    messages = list(dict.fromkeys(errors))  # An error of the whole source, such as a password, is the same for all
    if len(messages) == 1:
        raise UserError(messages[0])
    if messages:
        dots = ["..."] if len(messages) > LISTED else []
        raise UserError(f"{len(errors)} pictures cannot be read: {' | '.join(messages[:LISTED] + dots)}")
