"""A PNG without its texts and colour profile, which Pillow would inflate when it opens the file.

A thousand bytes inflate to a megabyte, which has four bytes for each character, and a file may have thousands of texts.
"""

import re
import struct
import zlib

from server.chunks import ChunkLimit
from server.errors import PictureError

SIGNATURE = b"\x89PNG\r\n\x1a\n"

RAW_PROFILE = "Raw profile type exif"
"""Keyword of a text that has EXIF data in hexadecimal, after three lines."""

_END = b"IEND"
_PROFILE = b"iCCP"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")

# Keywords of the other texts from which Pillow takes the orientation, and what it looks for in the first.
_XMP = b"XML:com.adobe.xmp"
_EXIF = b"exif"
_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)[0-9]')

# Programs write one such text. Pillow refuses longer ones; EXIF data that come from a JPEG have 130 KB in hexadecimal.
_MAX_TEXTS = 10
_MAX_INFLATED_BYTES = 2**20
_MAX_PROFILE_BYTES = 200_000


def strip(png: bytes) -> bytes:
    """Returns a PNG without texts and colour profile, except for what Pillow may take the orientation from.

    Pillow finds the same pixels and the same orientation in the result. A damaged file may be less damaged.

    Raises:
      PictureError: the file has too many chunks, or too many texts that may have an orientation.
    """
    limit = ChunkLimit(len(png))
    parts: list[bytes] = []
    start, place, texts, kind = 0, len(SIGNATURE), 0, b""
    # Nothing after the last chunk is read.
    while place < len(png) and kind != _END:
        limit.take()
        end = place + 12 + int.from_bytes(png[place : place + 4])
        kind = png[place + 4 : place + 8]
        if kind == _PROFILE or kind in _TEXTS:
            rest = b"" if kind == _PROFILE else _shorten(kind, png[place + 8 : end - 4])
            texts += bool(rest)
            if texts > _MAX_TEXTS:
                raise PictureError("The picture has far too much metadata: save it again with another program")
            parts += [png[start:place], rest]
            start = end
        place = end
    return b"".join([*parts, png[start:]]) if parts else png


def _shorten(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk with what a text says about the orientation, or nothing if it may not say anything."""
    keyword, _, rest = content.partition(b"\0")
    if keyword == _XMP:
        found = _ORIENTATION.search(_inflate(kind, rest))
        # Without an orientation, this text still hides the one in an earlier text.
        return _text(keyword, found[0] if found else b"-")
    if keyword == RAW_PROFILE.encode():
        return _text(keyword, _inflate(kind, rest)[:_MAX_PROFILE_BYTES])
    # These are EXIF data only if they are not compressed.
    return _text(keyword, rest) if keyword == _EXIF and kind == b"tEXt" else b""


def _inflate(kind: bytes, rest: bytes) -> bytes:
    """Returns a text without what precedes it after its keyword: flags and names of its language."""
    if kind == b"tEXt":
        return rest
    is_compressed = True
    if kind == b"iTXt":
        is_compressed = rest[:1] != b"\0"
        rest = b"\0" + rest[2:].split(b"\0", 2)[-1]
    if not is_compressed:
        return rest[1:]
    try:
        return zlib.decompressobj().decompress(rest[1:], _MAX_INFLATED_BYTES)
    except zlib.error:
        return b""


def _text(keyword: bytes, text: bytes) -> bytes:
    content = b"tEXt" + keyword + b"\0" + text
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
