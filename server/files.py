"""Files that the operator names, and may lock, write, replace or take away while the server runs."""

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple


class Signature(NamedTuple):
    """Tells a file from another that takes its place, without reading it."""

    written: int
    size: int
    place: int


def open_file(path: Path) -> BufferedReader:
    """Opens a file to read it.

    Raises:
        FileNotFoundError: there is none, or what is there is a folder, a pipe or the like.
        OSError: it cannot be read; its `strerror` says why.
    """
    try:
        # `Path.is_file` raises an error or says no, by the version of Python. Opening a pipe would wait for a writer.
        is_file = stat.S_ISREG(path.stat().st_mode)
    except NotADirectoryError:
        is_file = False
    if not is_file:
        raise FileNotFoundError(errno.ENOENT, "There is no such file", str(path))
    return path.open("rb")


def signature(file: BufferedReader) -> Signature:
    """The signature of an open file."""
    return _signature(os.fstat(file.fileno()))


def signature_of(path: Path) -> Signature | None:
    """The signature of the file that lies there now; nothing where there is none."""
    try:
        return _signature(path.stat())
    except OSError:
        return None


def _signature(status: os.stat_result) -> Signature:
    return Signature(status.st_mtime_ns, status.st_size, status.st_ino)


def digest(file: BufferedReader) -> str:
    """SHA-256 of the whole of an open file, in hexadecimal; leaves it at its beginning."""
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found
