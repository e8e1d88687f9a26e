"""Encoded pictures with labels: what every source provides."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxcnn.errors import UserError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read. Others start programs (EPS) or draw with the system's fonts (WMF)."""

MAX_BYTES = 2**28
"""Size above which a file is refused: it is not a picture, and would be read into memory as a whole."""


class TooLargeError(UserError):
    """A file has more than `MAX_BYTES`."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One encoded picture.

    Attributes:
      where: names the picture in error messages, such as `cat/1.png in /home/me/pets`.
      encoded: content of its file.
      label: class index; negative if the picture has no label.
      file: its path inside the folder or zip of the data set; empty if it is no file.
    """

    where: str
    encoded: bytes
    label: int
    file: str = ""


@runtime_checkable
class Pictures(Protocol):
    """A sequence of pictures that several threads may read at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Picture: ...


@runtime_checkable
class ListedPictures(Pictures, Protocol):
    """Pictures whose files and classes are known before they are read."""

    def listed(self) -> Iterable[tuple[str, int]]:
        """Returns the `file` and the `label` of each picture; see `Picture`."""
