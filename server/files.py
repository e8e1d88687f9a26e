"""Files named by the operator, which may be locked, overwritten, replaced or removed while the server runs."""

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple


class Signature(NamedTuple):
    """Distinguishes a file from another that replaces it, without reading either."""

    modified_ns: int
    size: int
    inode: int


def open_file(path: Path) -> BufferedReader:
    """Opens a file for reading.

    Raises:
      FileNotFoundError: nothing is there, or something other than a file, such as a folder or a pipe.
      OSError: it cannot be read; its `strerror` says why.
    """
    # `Path.is_file` raises an error or returns False, by the version of Python. Opening a pipe would wait for a writer.
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except NotADirectoryError:
        is_file = False
    if not is_file:
        raise FileNotFoundError(errno.ENOENT, "There is no such file", str(path))
    return path.open("rb")


def signature(file: BufferedReader) -> Signature:
    """Returns the signature of an open file."""
    return _signature(os.fstat(file.fileno()))


def signature_of(path: Path) -> Signature | None:
    """Returns the signature of the file at `path` now; None if there is no file that can be accessed."""
    try:
        return _signature(path.stat())
    except OSError:
        return None


def _signature(status: os.stat_result) -> Signature:
    return Signature(status.st_mtime_ns, status.st_size, status.st_ino)


def digest(file: BufferedReader) -> str:
    """Returns the SHA-256 of a whole open file, in hexadecimal, and rewinds the file."""
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found
