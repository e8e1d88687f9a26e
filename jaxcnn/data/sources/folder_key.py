"""The key of a large folder, kept from one start to the next.

The key of a folder depends on every file in it, and looking at 10 million files takes minutes. A folder's time changes
whenever a file is added, removed or renamed in it, so that looking at the folders alone is nearly as good.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from jaxcnn.checksum import ChecksumError, seal, unseal
from jaxcnn.data.texts import Texts
from jaxcnn.disk import write_atomically

MANY = 200_000
"""Files of a folder that are looked at one by one at every start, which takes about a second."""

SAMPLED = 1000
"""Files of a larger folder that are looked at: they detect that all pictures were overwritten, such as resized."""

SETTLED_SECONDS = 2.0
"""Folders that have changed within this time before they were listed may change again without another time: file
systems count time in steps of up to two seconds."""

type Identity = tuple[str, int, int]
"""Name of a file inside the folder, its size and its time of change in nanoseconds."""


def read_key(record: Path, folder: Path) -> str | None:
    """Returns the key that `write_key` has kept; None if it kept no key, or if the folder has changed since.

    Files that were overwritten in place are found only if they are among those that are looked at.
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, ChecksumError):
        kept = unseal(json.loads(record.read_text()))
        if _times(folder, list(kept["folders"])) == kept["folders"]:
            files = [list(_identify(folder, name)) for name, *_ in kept["files"]]
            return str(kept["key"]) if files == kept["files"] else None
    return None


def write_key(record: Path, folder: Path, key: str, *, files: Texts, folders: Sequence[str], listed: float) -> None:
    """Keeps the key of a folder, unless it has few files, has changed just now, or the disk is full.

    Args:
      record: the file to write.
      folder: the folder.
      key: its key.
      files: all files in it.
      folders: all folders in it.
      listed: seconds since 1970 when it was listed.
    """
    if len(files) < MANY:
        return
    with contextlib.suppress(OSError):
        times = _times(folder, ["", *folders])
        if max(times.values()) < (listed - SETTLED_SECONDS) * 1e9:
            some = [_identify(folder, files[place]) for place in range(0, len(files), -(-len(files) // SAMPLED))]
            record.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(record, json.dumps(seal({"key": key, "folders": times, "files": some})) + "\n")


def _times(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Returns the time of change of each of some folders in it; the name of the folder itself is empty."""
    return {name: os.stat(f"{folder}/{name}").st_mtime_ns for name in names}


def _identify(folder: Path, name: str) -> Identity:
    stat = os.stat(f"{folder}/{name}")
    return name, stat.st_size, stat.st_mtime_ns
