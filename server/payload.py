"""The wire formats of a request for predictions: what the bytes of a body hold."""

import base64
import json
import logging
import string
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.exceptions import HTTPException

# What it logs it also raises, but for trifles that a client could fill the log with.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_WHITE_SPACE = string.whitespace.encode()


@dataclass(frozen=True)
class Payload:
    """The pictures of one request, still encoded."""

    pictures: list[bytes]
    is_list: bool
    """Whether the client sent a list, and so gets one."""


def parse(content_type: str, body: bytes, *, max_images: int) -> Payload:
    """Takes a body apart.

    Args:
        content_type: the header of that name.
        body: the whole body.
        max_images: most pictures, and most parts of a multipart body.

    Raises:
        HTTPException: 400 malformed, 413 too many pictures, 415 another content type.
    """
    media_type, options = parse_options_header(content_type)
    if media_type == b"application/json":
        return _parse_json(body, max_images)
    if media_type == b"multipart/form-data":
        return _parse_multipart(options.get(b"boundary"), body, max_images)
    if media_type.startswith(b"image/") or media_type == b"application/octet-stream":
        return Payload([body], is_list=False)
    raise HTTPException(
        415,
        "This Content-Type is not read here: send application/json, multipart/form-data, or the picture itself"
        " as image/* or application/octet-stream.",
    )


def _parse_json(body: bytes, max_images: int) -> Payload:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, 'The body is not JSON: send {"image": "<base64>"}.') from None
    if not isinstance(content, dict) or ("image" in content) == ("images" in content):
        raise HTTPException(400, 'Send a JSON object with "image": "<base64>", or with "images": a list of those.')
    if "image" in content:
        return Payload([_from_base64("image", content["image"])], is_list=False)
    images = content["images"]
    if not isinstance(images, list) or not images:
        raise HTTPException(400, "`images` has to be a list of one or more base64 strings.")
    if len(images) > max_images:
        raise _too_many(max_images)
    return Payload([_from_base64(f"images[{i}]", each) for i, each in enumerate(images)], is_list=True)


def _from_base64(place: str, text: Any) -> bytes:
    """Decodes base64, strictly but for white space, which some encoders break lines with, and a `data:` URL."""
    if not isinstance(text, str):
        raise HTTPException(400, f"`{place}` has to be a string: the picture file in base64.")
    try:
        encoded = text.encode("ascii").translate(None, _WHITE_SPACE)
        if encoded[:5].lower() == b"data:":
            header, comma, encoded = encoded.partition(b",")
            if not (header + comma).lower().endswith(b";base64,"):
                raise HTTPException(400, f"`{place}` is a data: URL without `;base64,`: encode the picture in base64.")
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise HTTPException(
            400, f"`{place}` is not base64: use A-Z, a-z, 0-9, + and /, padded with = to a multiple of 4."
        ) from None


def _parse_multipart(boundary: bytes | None, body: bytes, max_images: int) -> Payload:
    parts: list[Field | File] = []
    ended: list[bool] = []

    def collect(part: Field | File) -> None:
        parts.append(part)
        if len(parts) > max_images:
            raise _too_many(max_images)

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": float("inf")}
        parser = FormParser(
            "multipart/form-data", collect, collect, lambda: ended.append(True), boundary, config=in_memory
        )
        parser.write(body)
    except FormParserError:
        raise HTTPException(400, "The body is not the multipart/form-data that its Content-Type promises.") from None
    if not ended:
        raise HTTPException(400, "The multipart body ends before its closing boundary: send the whole of it.")
    return _choose([each for each in parts if isinstance(each, File)])


def _choose(files: list[File]) -> Payload:
    names = {each.field_name for each in files}
    is_list = names == {b"images"}
    if is_list or (names == {b"image"} and len(files) == 1):
        return Payload([_content(each) for each in files], is_list=is_list)
    raise HTTPException(400, "Send one file part named `image`, or one or more named `images`.")


def _content(file: File) -> bytes:
    file.file_object.seek(0)
    return file.file_object.read()


def _too_many(max_images: int) -> HTTPException:
    return HTTPException(413, f"Too many pictures in one request: send at most {max_images}.")
