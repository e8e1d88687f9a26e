"""Compressed bodies, as Content-Encoding names them."""

import zlib

from starlette.exceptions import HTTPException

IDENTITY = "identity"
"""The encoding of a body that is not compressed."""

_WINDOW_BITS = {"gzip": 31, "deflate": 15}

ENCODINGS = (IDENTITY, *_WINDOW_BITS)
"""The supported values of Content-Encoding."""


# The most that deflate compresses.
_MAX_RATIO = 1032


def largest_size(body: bytes, encoding: str, *, max_bytes: int) -> int:
    """Returns how long the content of a body may be, without decompressing it.

    Args:
      body: as for `decompress`.
      encoding: as for `decompress`.
      max_bytes: as for `decompress`.
    """
    return len(body) if encoding == IDENTITY else min(_MAX_RATIO * len(body), _most(body, encoding, max_bytes))


def _most(body: bytes, encoding: str, max_bytes: int) -> int:
    """Returns how much content of a compressed body to take at most.

    A gzip stream ends with the size of its content, modulo 2 ** 32. zlib verifies it, but only at the end.
    """
    return min(int.from_bytes(body[-4:], "little"), max_bytes) if encoding == "gzip" else max_bytes


def decompress(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """Returns the content of a body.

    Args:
      body: the body as it was sent.
      encoding: one of `ENCODINGS`.
      max_bytes: largest content.

    Raises:
      HTTPException: 400 the body is not in this encoding, 413 its content is too large.
    """
    if encoding == IDENTITY:
        return body
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        # With room for one byte more, it reaches the end of the stream.
        content = decompressor.decompress(body, _most(body, encoding, max_bytes) + 1)
    except zlib.error:
        content = b""
    if len(content) > max_bytes:
        raise HTTPException(413, f"The body is too large once decompressed: send at most {max_bytes} bytes.")
    if not decompressor.eof or decompressor.unused_data:
        raise HTTPException(400, f"The body is not one complete {encoding} stream: send all of it, and nothing else.")
    return content
