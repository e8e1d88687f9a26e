"""A source that has been found but not read yet."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.data.sources.encoded_dataset import EncodedDataset


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
    digest = hashlib.sha256(repr((str(path), *identity)).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', path.name)[:40]}-{digest[:16]}"
