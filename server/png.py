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

# What a file may take more than it has, as its texts are kept inflated: two such texts.
_MAX_GROWTH = 2 * _MAX_PROFILE_BYTES


def strip(png: bytes) -> bytes:
    """Returns a PNG without texts and colour profile, except for what Pillow may take the orientation from.

    Pillow finds the same pixels and the same orientation in the result. A damaged file may be less damaged.

    Raises:
      PictureError: the file has too many chunks, or too many or too long texts that may have an orientation.
    """
    limit = ChunkLimit(len(png))
    parts: list[bytes] = []
    start, place, texts, growth, kind = 0, len(SIGNATURE), 0, 0, b""
    # Nothing after the last chunk is read.
    while place < len(png) and kind != _END:
        limit.take()
        end = place + 12 + int.from_bytes(png[place : place + 4])
        kind = png[place + 4 : place + 8]
        if kind == _PROFILE or kind in _TEXTS:
            rest = b"" if kind == _PROFILE else _shorten(kind, png[place + 8 : end - 4])
            texts, growth = texts + bool(rest), growth + max(0, len(rest) - (end - place))
            if texts > _MAX_TEXTS or growth > _MAX_GROWTH:
                raise PictureError("The picture has far too much metadata: save it again with another program")
            parts += [png[start:place], rest]
            start = end
        place = end
    return b"".join([*parts, png[start:]]) if parts else png


def _shorten(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk with what a text says about the orientation, or nothing if it may not say anything."""
    keyword, _, rest = content.partition(b"\0")
    if keyword in (_XMP, RAW_PROFILE.encode()):
        text = _read(kind, rest)
        if text is None:
            return b""
        if keyword == _XMP:
            found = _ORIENTATION.search(text)
            # Without an orientation, this text still hides the one in an earlier text.
            text = found[0] if found else b"-"
        return _text(keyword, text[:_MAX_PROFILE_BYTES])
    # These are EXIF data only if they are not compressed.
    return _text(keyword, rest) if keyword == _EXIF and kind == b"tEXt" else b""


def _read(kind: bytes, rest: bytes) -> bytes | None:
    """Returns a text without what precedes it after its keyword; None if Pillow would ignore it."""
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflate(rest[1:]) or b""
    # Two bytes say whether it is compressed, and how; names of its language follow.
    is_compressed, method, names_and_text = rest[:1] != b"\0", rest[1:2], rest[2:].split(b"\0", 2)
    if len(names_and_text) < 3 or (is_compressed and method != b"\0"):
        return None
    return _inflate(names_and_text[2]) if is_compressed else names_and_text[2]


def _inflate(compressed: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(compressed, _MAX_INFLATED_BYTES)
    except zlib.error:
        return None


def _text(keyword: bytes, text: bytes) -> bytes:
    content = b"tEXt" + keyword + b"\0" + text
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
