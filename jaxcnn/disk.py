"""Files that are whole after a power cut: what a program has written, the system may still hold back."""

import errno
import os
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota and a file at its size limit."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is either whole or as it was before; text in UTF-8."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, has reached the disk.

    Windows opens no folders, and flushes only what was opened for writing.
    """
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that do not know it, such as VirtualBox's of folders
            raise
    finally:
        os.close(descriptor)
