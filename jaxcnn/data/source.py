"""A source that has been found but not read yet."""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.data.encoded_dataset import EncodedDataset


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that can be opened; while its pictures are in the cache, that is not necessary.

    Attributes:
      key: identifies the pictures, and is a valid file name: equal keys mean equal pictures.
      open: lists the pictures, after downloading them if need be.
    """

    key: str
    open: Callable[[], EncodedDataset]


def make_key(path: Path, *identity: object) -> str:
    """Returns a key for the pictures at `path`: its name made safe, and a hash of the path and `identity`."""
    return make_key_of_text(path, [repr((str(path), *identity))])


def make_key_of_text(path: Path, parts: Iterable[str]) -> str:
    """Returns the key that `make_key` does for an identity, given the parts of its text, which may be long."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', path.name)[:40]}-{digest.hexdigest()[:16]}"
