"""Writing files so that they are whole, even after a power cut."""

import errno
import os
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota and a file at its size limit."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, text in UTF-8. After a failure or a power cut, the file is whole or as it was before.

    Raises:
      OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            # The contents must reach the disk before the name does.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, has reached the disk.

    Does nothing for folders on Windows, which cannot open them.

    Raises:
      OSError: the system could not write it.
    """
    if path.is_dir() and os.name == "nt":
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do not support it for folders, such as VirtualBox's.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
