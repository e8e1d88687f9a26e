"""The native wire format: a picture as JSON, raw bytes or multipart, and the most probable classes as JSON."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.exceptions import HTTPException

from server import picture
from server.errors import PictureError
from server.model import Model
from server.picture import Cost
from server.protocols import AbandonedError, Answer, Decoded, Outputs, Work
from server.protocols.compression import IDENTITY, decompress, largest_size
from server.protocols.text import MAX_VALUES, count_values, optional, parse_base64, parse_object, too_many_values
from server.settings import Settings

# python_multipart raises what it logs, except for trifles with which a client could fill the log.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_JSON = {"Content-Type": "application/json"}

# Media types of a raw body besides image/*. SageMaker's image classifier takes the second.
_RAW = (b"application/octet-stream", b"application/x-image")


# An open file keeps its content, and its metadata once or twice more.
_OPEN_COPIES = 3


@dataclass(frozen=True)
class Payload:
    """The pictures of one request, still encoded."""

    pictures: list[bytes]
    is_list: bool
    """Whether the client sent a list, and so gets one back."""


@dataclass(frozen=True, kw_only=True)
class NativeQuery:
    """A request to /predict or /invocations."""

    content_type: str
    body: bytes
    encoding: str = IDENTITY
    """How the body is compressed."""
    top_k: int
    """How many classes to return."""
    heatmap: bool
    """Whether to return where the model looked."""
    limits: Settings

    @property
    def size(self) -> int:
        """Length of the body in bytes, or the largest that it may have once decompressed."""
        return largest_size(self.body, self.encoding, max_bytes=self.limits.max_body_bytes)

    def decode(self, model: Model, work: Work) -> Decoded:
        """Parses the body and decodes its pictures.

        Raises:
          HTTPException: the body does not match its content type or has no pictures, a picture is invalid, or the
            request asks for a heat map that the model does not have.
          AbandonedError: nobody waits any more.
        """
        if self.heatmap and not model.has_heatmap:
            raise HTTPException(400, "This model has no heat map: leave out `heatmap`.")
        # The text is not kept while the pictures are decoded.
        payload = parse(
            self.content_type,
            decompress(self.body, self.encoding, max_bytes=self.limits.max_body_bytes),
            max_images=self.limits.max_images,
        )
        places = [f"images[{i}]: " if payload.is_list else "" for i in range(len(payload.pictures))]
        images = decode_pictures(list(zip(places, payload.pictures, strict=True)), model, self.limits, work)
        outputs = {"probabilities", "heatmap"} if self.heatmap else {"probabilities"}
        return Decoded(images, frozenset(outputs), partial(_encode, model.names, self.top_k, payload.is_list))


def decode_pictures(
    pictures: Sequence[tuple[str, bytes]], model: Model, limits: Settings, work: Work
) -> npt.NDArray[np.uint8]:
    """Decodes pictures to the model's size, as long as anyone waits for them.

    Args:
      pictures: one or more files, each with its place in the request, which begins a message about it.
      model: sets the size.
      limits: bounds the size of each picture, and the cost of all of them.
      work: the request; decides on the cost, which the headers reveal, before anything is decoded.

    Returns:
      uint8 [pictures, height, width, 3].

    Raises:
      HTTPException: 400 a picture is invalid, 413 they cost too much together.
      AbandonedError: nobody waits any more.
    """
    # Read the headers.
    opened: deque[tuple[str, picture.Picture]] = deque()
    for place, data in pictures:
        if not work.is_wanted():
            raise AbandonedError
        opened.append((place, _open_picture(place, data, model, limits)))
    # Where this is more than there is for decoding, each thread has enough besides for open files.
    memory = max(found.cost.bytes for _, found in opened) + _OPEN_COPIES * sum(len(data) for _, data in pictures)
    cost = Cost(pixels=sum(found.cost.pixels for _, found in opened), bytes=min(memory, limits.max_decode_bytes))
    if cost.pixels > limits.max_request_pixels:
        raise HTTPException(
            413,
            f"Decoding this request would take as long as {cost.pixels} pixels: send pictures that take at most"
            f" {limits.max_request_pixels} together, or fewer at once.",
        )
    work.check_cost(cost)
    # Decode. Each picture is dropped before the next, as it may take much memory.
    images = []
    while opened:
        if not work.is_wanted():
            raise AbandonedError
        place, found = opened.popleft()
        with _Located(place):
            images.append(found.decode())
        del found
    return np.stack(images)


def _open_picture(place: str, data: bytes, model: Model, limits: Settings) -> picture.Picture:
    with _Located(place):
        found = picture.Picture(
            data, height=model.height, width=model.width, resize=model.resize, max_pixels=limits.max_pixels
        )
        if found.cost.bytes > limits.max_decode_bytes:
            raise PictureError(
                f"Decoding the picture would take {found.cost.bytes} bytes, and there are {limits.max_decode_bytes}:"
                " scale it down"
            )
        return found


class _Located:
    """Turns an error of a picture into a 400 that says which picture it is.

    Not a generator, as that would keep the picture in memory; see `picture._Explained`.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, PictureError):
            raise HTTPException(400, f"{self._place}{error}.") from error


def _encode(names: tuple[str, ...], top_k: int, is_list: bool, outputs: Outputs) -> Answer:
    predictions = [_prediction(names, top_k, row) for row in outputs["probabilities"]]
    for prediction, heatmap in zip(predictions, outputs.get("heatmap", ()), strict=False):
        prediction["heatmap"] = heatmap
    content = predictions if is_list else predictions[0]
    return Answer(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), _JSON)


def _prediction(names: tuple[str, ...], top_k: int, probabilities: npt.NDArray[np.float32]) -> dict[str, Any]:
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    top = [{"class": names[i], "prob": float(probabilities[i])} for i in best]
    return {"predicted_class": top[0]["class"], "top_predictions": top}


def parse(content_type: str, body: bytes, *, max_images: int) -> Payload:
    """Extracts the encoded pictures from a body.

    Args:
      content_type: the header Content-Type.
      body: the whole body.
      max_images: most pictures, and most parts of a multipart body.

    Raises:
      HTTPException: 400 malformed, 413 too many pictures, 415 unsupported content type.
    """
    media_type, options = parse_options_header(content_type)
    if media_type == b"application/json":
        return _parse_json(body, max_images)
    if media_type == b"multipart/form-data":
        return _parse_multipart(options.get(b"boundary"), body, max_images)
    if media_type.startswith(b"image/") or media_type in _RAW:
        return Payload([body], is_list=False)
    raise HTTPException(
        415,
        "This Content-Type is not supported: send application/json, multipart/form-data, or the picture itself as"
        " image/* or application/octet-stream.",
    )


def _parse_json(body: bytes, max_images: int) -> Payload:
    if count_values(body) > MAX_VALUES:
        raise too_many_values()
    content = parse_object(body, 'send {"image": "<base64>"}')
    image, images = optional(content, "image", None), optional(content, "images", None)
    if (image is None) == (images is None):
        raise HTTPException(400, 'Send a JSON object with either "image": "<base64>" or "images": ["<base64>", ...].')
    if image is not None:
        return Payload([parse_base64("image", image)], is_list=False)
    if not isinstance(images, list) or not images:
        raise HTTPException(400, "`images` must be a list of one or more base64 strings.")
    if len(images) > max_images:
        raise too_many(max_images)
    return Payload([parse_base64(f"images[{i}]", text) for i, text in enumerate(images)], is_list=True)


def _parse_multipart(boundary: bytes | None, body: bytes, max_images: int) -> Payload:
    parts: list[Field | File] = []
    ended: list[bool] = []

    def collect(part: Field | File) -> None:
        parts.append(part)
        if len(parts) > max_images:
            raise HTTPException(413, f"Too many parts in one form: send at most {max_images}, of whatever kind.")

    try:
        # Keep files in memory: the body is there already, and its size is bounded.
        in_memory = {"MAX_MEMORY_FILE_SIZE": float("inf")}
        parser = FormParser(
            "multipart/form-data", collect, collect, lambda: ended.append(True), boundary, config=in_memory
        )
        try:
            parser.write(body)
        finally:
            # The callbacks of this inner parser have the outer one: the cycle would keep the files in memory until the
            # next full garbage collection.
            parser.parser = None
    except FormParserError:
        raise HTTPException(
            400, "The body is not valid multipart/form-data: check that its boundary is that of the Content-Type."
        ) from None
    if not ended:
        raise HTTPException(400, "The multipart body ends before its closing boundary: send all of it.")
    # Other fields are ignored, but not other files.
    return _choose([part for part in parts if isinstance(part, File) or part.field_name in (b"image", b"images")])


def _choose(parts: list[Field | File]) -> Payload:
    names = {part.field_name for part in parts}
    is_list = names == {b"images"}
    if is_list or (names == {b"image"} and len(parts) == 1):
        return Payload([_content(part) for part in parts], is_list=is_list)
    raise HTTPException(400, "Send one file part named `image`, or one or more named `images`.")


def _content(part: Field | File) -> bytes:
    # A file part without a file name is parsed as a field.
    if isinstance(part, Field):
        return part.value or b""
    part.file_object.seek(0)
    return part.file_object.read()


def too_many(max_images: int) -> HTTPException:
    """Returns the 413 of a request with too many pictures."""
    return HTTPException(413, f"Too many pictures in one request: send at most {max_images}.")
