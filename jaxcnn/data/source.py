"""What every kind of source has in common: encoded pictures with labels, and a key for the cache."""

import errno
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers when a disk, a quota or a file is full."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One encoded picture: where it comes from (for messages), its file's bytes, and its class index."""

    where: str
    encoded: bytes
    label: int


@runtime_checkable
class Pictures(Protocol):
    """Pictures of one split by position; read from several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Picture: ...


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source whose pictures can be read."""

    name: str
    names: tuple[str, ...]
    """Readable class names; the position is the class index."""
    wnids: tuple[str, ...] = ()
    """WordNet identifiers in the order of `names`, if the classes have them."""
    license: str
    train: Pictures
    validation: Pictures
    """Empty if the source has no validation pictures of its own."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures that are not read yet."""

    key: str
    """A file name: sources with the same key have the same pictures."""
    open: Callable[[], Opened]
    """Downloads or lists the pictures; called only when they are not in the cache."""


def make_key(path: Path, *identity: object) -> str:
    """A key for what lies at `path`: its readable name and a fingerprint of the path and `identity`."""
    digest = hashlib.sha256(repr((str(path), *identity)).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', path.name)[:40]}-{digest[:16]}"
