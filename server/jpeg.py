"""What the markers of a JPEG reveal about the cost of opening and decoding it."""

import re

from PIL import ExifTags

from server import exif
from server.chunks import ChunkLimit
from server.errors import PictureError

SIGNATURE = b"\xff\xd8"

# Programs write a dozen scans. Each takes 40 ms for 25 megapixels however short it is: 64 bytes may do.
_MAX_SCANS = 100

# Pillow takes 3 microseconds for each value of a tag that it decodes, and it decodes these when it opens a file.
_MAX_VALUES = 1000
_DECODED_TAGS = (ExifTags.Base.XResolution, ExifTags.Base.ResolutionUnit)

# All markers but restarts, which have no segment.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_END_OF_IMAGE, _START_OF_SCAN, _TABLES = 0xD9, 0xDA, 0xDB
_PHOTOSHOP, _RESOURCE = 0xED, b"8BIM"
_EXIF_SEGMENT, _EXIF = 0xE1, b"Exif\0\0"
_PICTURES_SEGMENT, _PICTURES = 0xE2, b"MPF\0"

# Arithmetic coding, which hardly any program writes. A scan without data still costs a decision for each coefficient of
# the picture: 26 KB may take 5 minutes.
_ARITHMETIC = frozenset(b"\xc9\xca\xcb\xcd\xce\xcf")

_FRAMES = frozenset(b"\xc0\xc1\xc2\xc3\xc5\xc6\xc7")

# What no decoder accepts before the first scan, such as another start or an end. Pillow goes on reading behind it, also
# what would be taken for its segment here.
_MISPLACED = frozenset(b"\xc8\xd8\xd9\xde\xdf" + bytes(range(0xF0, 0xFE)))


def count_scans(data: bytes) -> int:
    """Walks over the markers up to the end of the image; what follows, such as a video, is not looked at.

    Raises:
      PictureError: the file has too many scans or segments, is arithmetic-coded, has EXIF data of very many values, or
        ends before its first scan.
    """
    limit = ChunkLimit(len(data))
    scans, frames, start = 0, 0, len(SIGNATURE)
    exif_data: list[bytes] = []
    while (marker := _MARKER.search(data, start)) and not (scans and marker[1][0] == _END_OF_IMAGE):
        kind, start = marker[1][0], marker.end()
        scans += kind == _START_OF_SCAN
        frames += kind in _FRAMES
        _check_marker(kind, scans, frames)
        # The first two bytes of a segment are its length.
        end = start + int.from_bytes(data[start : start + 2])
        limit.take(1 if scans else _count_parts(kind, data, start + 2, end))
        if kind == _EXIF_SEGMENT and data.startswith(_EXIF, start + 2):
            exif_data.append(data[start + 2 + len(_EXIF) : end])
        start = end
    # Pillow joins the segments, too.
    _check_exif(b"".join(exif_data), limit)
    return scans


def _check_marker(kind: int, scans: int, frames: int) -> None:
    if kind in _ARITHMETIC:
        raise PictureError("The picture is an arithmetic-coded JPEG, which is not supported: save it as plain JPEG")
    if scans > _MAX_SCANS:
        raise PictureError(f"The picture is a JPEG of more than {_MAX_SCANS} scans: save it as plain JPEG")
    if frames > 1 or (kind in _MISPLACED and not scans):
        raise PictureError("The picture is a damaged JPEG: save it again with another program")


def _count_parts(kind: int, data: bytes, start: int, end: int) -> int:
    """Returns what a segment before the first scan counts: Pillow parses some of them in Python."""
    if kind == _TABLES:
        return 1 + (end - start) // 64
    if kind == _PHOTOSHOP:
        return 1 + data.count(_RESOURCE, start, end)
    if kind == _PICTURES_SEGMENT and data.startswith(_PICTURES, start):
        return 1 + sum(exif.count_values(data[start + len(_PICTURES) : end]).values())
    return 1


def _check_exif(data: bytes, limit: ChunkLimit) -> None:
    limit.take(exif.count_entries(data))
    counts = exif.count_values(data)
    if any(counts.get(tag, 0) > _MAX_VALUES for tag in _DECODED_TAGS):
        raise PictureError(
            "The picture has EXIF data with thousands of resolutions: save it again with another program"
        )
