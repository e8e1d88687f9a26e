"""Strict parsing of JSON and base64."""

import string
from typing import Any

import orjson
import pybase64
from starlette.exceptions import HTTPException

_WHITE_SPACE = string.whitespace.encode()


def parse_object(body: bytes | memoryview, hint: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
      body: the JSON text in UTF-8.
      hint: what to send instead, for the message.

    Raises:
      HTTPException: 400, the body is not a JSON object.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HTTPException(400, f"The body is not JSON: {hint}.") from None
    if not isinstance(content, dict):
        raise HTTPException(400, f"The body is JSON, but not an object: {hint}.")
    return content


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
