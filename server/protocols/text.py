"""JSON and base64, read strictly."""

import string
from typing import Any

import orjson
import pybase64
from starlette.exceptions import HTTPException

_WHITE_SPACE = string.whitespace.encode()


def parse_object(body: bytes | memoryview, hint: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        body: the JSON text in UTF-8.
        hint: what to send instead, for the message.

    Raises:
        HTTPException: 400.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HTTPException(400, f"The body is not JSON: {hint}.") from None
    if not isinstance(content, dict):
        raise HTTPException(400, f"The body is JSON but not an object: {hint}.")
    return content


def optional(holder: dict[str, Any], name: str, default: Any) -> Any:
    """A field that may be left out; clients with a schema send null for what they leave out."""
    value = holder.get(name)
    return default if value is None else value


def parse_base64(place: str, text: Any) -> bytes:
    """Decodes base64, strictly but for white space, which some encoders break lines with, and a `data:` URL.

    Raises:
        HTTPException: 400, naming the place.
    """
    if not isinstance(text, str):
        raise HTTPException(400, f"`{place}` has to be a string: the picture file in base64.")
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return _parse_loose_base64(place, text)


def _parse_loose_base64(place: str, text: str) -> bytes:
    try:
        encoded = text.encode("ascii").translate(None, _WHITE_SPACE)
        if encoded[:5].lower() == b"data:":
            header, comma, encoded = encoded.partition(b",")
            if not (header + comma).lower().endswith(b";base64,"):
                raise HTTPException(400, f"`{place}` is a data: URL without `;base64,`: encode the picture in base64.")
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        raise HTTPException(
            400, f"`{place}` is not base64: use A-Z, a-z, 0-9, + and /, padded with = to a multiple of 4."
        ) from None
