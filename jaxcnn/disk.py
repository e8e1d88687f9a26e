"""Writing files so that they are whole, even after a power cut, and waiting for files of other machines."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jaxcnn.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota and a file at its size limit."""
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error numbers of a lack of permission."""
SHOWN_SECONDS = 60.0
"""Time after which each machine sees a new file on a network drive: NFS looks again after at most a minute."""
_FREE = " MB free)"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, text in UTF-8. After a failure or a power cut, the file is whole or as it was before.

    Raises:
      OSError: the file cannot be written. If the disk is full, the message has the needed and the free space.
    """
    content = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            # The contents must reach the disk before the name does.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):  # A disk that fails may not let it be removed either.
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, describe(error, path.parent, needed=len(content)), str(path)) from error
        raise


def describe(error: OSError, folder: Path, *, needed: int | None = None) -> str:
    """Returns the system's words for an error, and if the disk is full, how much space there is.

    Args:
      error: the error of writing.
      folder: where it was written to.
      needed: bytes that were to be written; None if it is not known.
    """
    reason = error.strerror or str(error)
    # `write_atomically` has already described its own.
    if error.errno not in NO_ROOM or reason.endswith(_FREE):
        return reason
    needs = "" if needed is None else f"{needed / 1e6:,.3f} MB needed, "
    with suppress(OSError):
        return f"{reason} ({needs}{shutil.disk_usage(folder).free / 1e6:,.3f}{_FREE}"
    return reason


def remedy(error: OSError) -> str:
    """Returns what to do about an error of a disk, such as "make room"; empty if that depends on the command."""
    if error.errno in NO_ROOM:
        return "make room"
    if error.errno in REFUSED:
        return "allow this user to read and write there"
    return "check the disk" if error.errno == errno.EIO else ""


def check_room(folder: Path, needed: int, *, what: str, advice: str) -> None:
    """Raises UserError if a disk is too full for what is to be written.

    Args:
      folder: where it is to be written to.
      needed: its bytes.
      what: names it in the message.
      advice: what to do if the disk is too full.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the disk is too full: {what} take {needed / 1e6:,.1f} MB in {folder}, where {free / 1e6:,.1f} MB are "
            f"free; {advice}"
        )


def wait_for[T](find: Callable[[], T]) -> T:
    """Looks for what another machine has written, for at most `SHOWN_SECONDS`.

    Args:
      find: returns it, or None or False if it is not there.

    Returns:
      What `find` has returned in the end.
    """
    deadline = time.monotonic() + SHOWN_SECONDS
    while not (found := find()) and time.monotonic() <= deadline:
        time.sleep(0.1)
    return found


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
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)
