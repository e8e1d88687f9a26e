"""Strict parsing of JSON and base64."""

import re
import string
from typing import Any

import orjson
import pybase64
from starlette.exceptions import HTTPException

from server.picture import Cost

MAX_VALUES = 10_000
"""Most values in the JSON text of a request with picture files, which have a few dozen."""

# A string has four bytes for every character if one of them is beyond the first 65,536.
_MAX_WIDE_BYTES = 8_000_000
_WIDE = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")

_WHITE_SPACE = string.whitespace.encode()


def count_values(body: bytes) -> int:
    """Returns how many values a JSON text has at most: strings may contain what is counted, too."""
    return 1 + sum(body.count(mark) for mark in (b",", b"[", b"{"))


def cost_of(body: bytes) -> Cost:
    """Returns what it takes to parse a JSON text and to make an array of its numbers, by measurements.

    The two bytes of an empty list take a hundred once parsed. The characters of strings are not counted.
    """
    commas, lists, objects, quotes = (body.count(mark) for mark in (b",", b"[", b"{", b'"'))
    memory = 72 * commas + 120 * lists + 240 * objects + 40 * quotes
    return Cost(pixels=5 * (1 + commas + lists + objects), bytes=memory)


def parse_object(body: bytes, hint: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
      body: the JSON text in UTF-8.
      hint: what to send instead, for the message.

    Raises:
      HTTPException: 400 the body is not a JSON object, 413 it would take far more memory than its text.
    """
    if len(body) > _MAX_WIDE_BYTES and _is_wide(body):
        raise HTTPException(
            413,
            f"The JSON text has more than {_MAX_WIDE_BYTES} bytes and characters such as emoji, which take four times"
            " as much: leave them out.",
        )
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HTTPException(400, f"The body is not JSON: {hint}.") from None
    if not isinstance(content, dict):
        raise HTTPException(400, f"The body is JSON, but not an object: {hint}.")
    return content


def too_many_values() -> HTTPException:
    """Returns the 413 of a request with picture files whose JSON text has too many values."""
    return HTTPException(413, f"The JSON text has too many values for picture files: send at most {MAX_VALUES}.")


def _is_wide(body: bytes) -> bool:
    # Nearly all texts are ASCII without escapes, which is found in a hundredth of the time.
    return (not body.isascii() or b"\\u" in body) and _WIDE.search(body) is not None


def optional(holder: dict[str, Any], name: str, default: Any) -> Any:
    """Returns a field, or `default` if it is absent or null: clients with a schema send null for absent fields."""
    value = holder.get(name)
    return default if value is None else value


def parse_base64(place: str, text: Any) -> bytes:
    """Decodes base64 strictly, except that it may have white space and the prefix of a `data:` URL.

    Args:
      place: where the text stands in the request, for the message.
      text: the JSON value, which must be a string.

    Raises:
      HTTPException: 400, the text is not valid base64.
    """
    if not isinstance(text, str):
        raise HTTPException(400, f"`{place}` must be a string: the picture file in base64.")
    # Nearly all clients send plain base64, which takes one fast call.
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return _parse_loose_base64(place, text)


def _parse_loose_base64(place: str, text: str) -> bytes:
    try:
        # Some encoders break lines.
        encoded = text.encode("ascii").translate(None, _WHITE_SPACE)
        if encoded[:5].lower() == b"data:":
            header, comma, encoded = encoded.partition(b",")
            if not (header + comma).lower().endswith(b";base64,"):
                raise HTTPException(400, f"`{place}` is a data: URL without `;base64,`: encode the picture in base64.")
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        raise HTTPException(
            400, f"`{place}` is not base64: use A-Z, a-z, 0-9, + and /, padded with = to a multiple of 4 characters."
        ) from None
