"""Good requests of every wire format, with the classes that a reference without a server finds in their pictures."""

import base64
import gzip
import io
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from tests.bench.load import jpegs
from tests.server.wire import COLOURS, encode
from tests.soak.models import SHIPPED
from tests.soak.wire import Response, post

_MARGIN = 0.05


@dataclass(frozen=True)
class Picture:
    """A picture file, and the class that the model finds in it."""

    data: bytes
    answer: str


@dataclass(frozen=True)
class Question:
    """Requests that are sent at once, and what their responses have to say.

    Attributes:
      kind: of which format they are.
      data: the whole requests.
      answers: the classes of each response.
      read: returns the classes of a response.
    """

    kind: str
    data: bytes
    answers: list[list[str]]
    read: Callable[[Response], list[str]]


def find_pictures(random: Random) -> dict[str, list[Picture]]:
    """Returns pictures for each model. The classes of those for `tiny` are not close to any other class."""
    formats = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
    colours = [
        Picture(encode(value, kind, (random.randint(8, 400), random.randint(8, 400))), name)
        for name, value in COLOURS.items()
        for kind in formats
    ]
    session = onnxruntime.InferenceSession(SHIPPED, providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["names"])
    tiny = []
    for data in jpegs(60):
        pixels = np.asarray(Image.open(io.BytesIO(data)))[None]
        (probabilities,) = session.run(["probabilities"], {"image": pixels})
        second, first = np.sort(probabilities[0])[-2:]
        if first - second > _MARGIN:
            tiny.append(Picture(data, names[int(probabilities.argmax())]))
    return {"tiny": tiny, "colours": colours}


def make_question(pictures: dict[str, list[Picture]], random: Random) -> Question:
    """Returns a random question."""
    model = random.choice(list(pictures))
    kind = random.choice(list(_KINDS))
    chosen = random.choices(pictures[model], k=random.randint(1, 4))
    return _KINDS[kind](kind, model, chosen)


def _json(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    body = json.dumps({"image": _text(pictures[0])}).encode()
    return _native(kind, post(f"/models/{model}/predict", body, "application/json"), pictures[:1])


def _json_list(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    body = json.dumps({"images": [_text(picture) for picture in pictures]}).encode()
    return _native(kind, post(f"/models/{model}/predict", body, "application/json"), pictures)


def _gzip(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    body = gzip.compress(json.dumps({"images": [_text(picture) for picture in pictures]}).encode())
    request = post(f"/models/{model}/predict", body, "application/json", "Content-Encoding: gzip")
    return _native(kind, request, pictures)


def _raw(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    request = post(f"/models/{model}/predict", pictures[0].data, "application/octet-stream")
    return _native(kind, request, pictures[:1])


def _chunked(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    data = pictures[0].data
    parts = [data[:1], data[1 : len(data) // 2], data[len(data) // 2 :], b""]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    head = f"POST /models/{model}/predict HTTP/1.1\r\nHost: soak\r\nContent-Type: image/png\r\n"
    return _native(kind, head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + body, pictures[:1])


def _multipart(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    field = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    body = b"".join(field + picture.data + b"\r\n" for picture in pictures) + b"--x--\r\n"
    return _native(kind, post(f"/models/{model}/predict", body, "multipart/form-data; boundary=x"), pictures)


def _pipelined(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    """Three requests, whose responses have to come in order."""
    singles = [_raw(kind, model, [picture]) for picture in (*pictures, *pictures, *pictures)[:3]]
    answers = [answer for question in singles for answer in question.answers]
    return Question(kind, b"".join(question.data for question in singles), answers, _read_native)


def _infer_json(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    return _infer(kind, model, pictures, {"datatype": "BYTES", "data": [_text(picture) for picture in pictures]}, b"")


def _infer_binary(kind: str, model: str, pictures: Sequence[Picture]) -> Question:
    blob = b"".join(struct.pack("<I", len(picture.data)) + picture.data for picture in pictures)
    tensor = {"datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    return _infer(kind, model, pictures, tensor, blob)


def _infer(kind: str, model: str, pictures: Sequence[Picture], tensor: dict[str, Any], blob: bytes) -> Question:
    output = {"name": "probabilities", "parameters": {"classification": 1, "binary_data": bool(blob)}}
    content = {"inputs": [{"name": "image", "shape": [len(pictures)], **tensor}], "outputs": [output]}
    text = json.dumps(content).encode()
    headers = [f"Inference-Header-Content-Length: {len(text)}"] if blob else []
    request = post(f"/v2/models/{model}/infer", text + blob, "application/octet-stream", *headers)
    return Question(kind, request, [[picture.answer for picture in pictures]], _read_infer)


_KINDS: dict[str, Callable[[str, str, Sequence[Picture]], Question]] = {
    "json": _json,
    "json list": _json_list,
    "gzip": _gzip,
    "raw": _raw,
    "chunked": _chunked,
    "multipart": _multipart,
    "pipelined": _pipelined,
    "infer json": _infer_json,
    "infer binary": _infer_binary,
}


def _text(picture: Picture) -> str:
    return base64.b64encode(picture.data).decode()


def _native(kind: str, data: bytes, pictures: Sequence[Picture]) -> Question:
    return Question(kind, data, [[picture.answer for picture in pictures]], _read_native)


def _read_native(response: Response) -> list[str]:
    content = json.loads(response.body)
    found = content if isinstance(content, list) else [content]
    return [result["predicted_class"] for result in found]


def _read_infer(response: Response) -> list[str]:
    size = int(response.headers.get("inference-header-content-length", len(response.body)))
    (output,) = json.loads(response.body[:size])["outputs"]
    texts = output["data"] if "data" in output else list(_split(response.body[size:]))
    return [text.split(":", 2)[2] for text in texts]


def _split(blob: bytes) -> Iterator[str]:
    while blob:
        (size,) = struct.unpack_from("<I", blob)
        yield blob[4 : 4 + size].decode()
        blob = blob[4 + size :]
