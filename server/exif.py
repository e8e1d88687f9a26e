"""The table of tags at the start of EXIF data, read without decoding values: a tag may have millions of them."""

import re
import struct
from collections.abc import Iterator

_PREFIX = re.compile(rb"(Exif\0\0){1,2}")
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}


def count_values(exif: bytes) -> dict[int, int]:
    """Returns how many values each tag of the first directory declares; the most, if it has several entries.

    Args:
      exif: EXIF data, with or without the prefix that it has in a JPEG. Damaged data have fewer tags, or none.
    """
    counts: dict[int, int] = {}
    for tag, count in _entries(exif):
        # Damage may declare more values than there are bytes; nobody decodes those.
        if count > len(exif):
            continue
        counts[tag] = max(count, counts.get(tag, 0))
    return counts


def count_entries(exif: bytes) -> int:
    """Returns how many entries the first directory has; several may be of the same tag.

    Args:
      exif: as for `count_values`.
    """
    return sum(1 for _ in _entries(exif))


def _entries(exif: bytes) -> Iterator[tuple[int, int]]:
    """Yields tag and number of values of each entry, as far as the data go."""
    prefix = _PREFIX.match(exif)
    tiff = exif[prefix.end() if prefix else 0 :]
    order = _BYTE_ORDERS.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return
    (start,) = struct.unpack_from(f"{order}L", tiff, 4)
    length = tiff[start : start + 2]
    if len(length) == 2:
        entries = tiff[start + 2 : start + 2 + 12 * struct.unpack(f"{order}H", length)[0]]
        yield from struct.iter_unpack(f"{order}H2xL4x", entries[: len(entries) // 12 * 12])
