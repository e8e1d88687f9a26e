"""The Open Inference Protocol (KServe's version 2) over HTTP, with the binary tensor data extension."""

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from starlette.exceptions import HTTPException

from server.model import Model
from server.protocols import Answer, Decoded, Outputs
from server.protocols.native import decode_pictures, too_many
from server.protocols.tensor import Input, parse_input, to_files, to_images
from server.protocols.text import optional, parse_object
from server.settings import Settings

VERSION = "1"
"""The one version of the model that is served at a time."""

_HINT = 'send {"inputs": [{"name": "image", "datatype": ..., "shape": ..., "data": ...}]}'


def server_metadata() -> dict[str, Any]:
    """What `GET /v2` tells."""
    return {"name": "jaxcnn", "version": server_version(), "extensions": ["binary_tensor_data"]}


def server_version() -> str:
    """The installed version of this package."""
    try:
        return importlib.metadata.version("jaxcnn")
    except importlib.metadata.PackageNotFoundError:  # Run from a folder.
        return "unknown"


def model_metadata(model: Model) -> dict[str, Any]:
    """What `GET /v2/models/NAME` tells."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, model.height, model.width, 3]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, *shape]} for name, shape in model.outputs.items()],
    }


@dataclass(frozen=True)
class _Wanted:
    """An output that the client asks for."""

    name: str
    binary: bool


@dataclass(frozen=True, kw_only=True)
class InferQuery:
    """What a client posts to /v2/models/NAME/infer."""

    body: bytes
    json_size: str | None
    """The header Inference-Header-Content-Length: how much of the body is JSON; all of it if there is none."""
    limits: Settings

    @property
    def size(self) -> int:
        """Length of the body."""
        return len(self.body)

    def decode(self, model: Model, is_wanted: Callable[[], bool]) -> Decoded:
        """Takes the body apart and decodes its pictures.

        Raises:
            HTTPException: 400 malformed, 413 too many pictures.
            AbandonedError: nobody waits any more.
        """
        text, binary = self._split()
        content = parse_object(text, _HINT)
        request_id = content.get("id")
        if request_id is not None and not isinstance(request_id, str):
            raise HTTPException(400, "`id` has to be a string.")
        wanted = _parse_outputs(content, model)
        tensor = parse_input(content, binary)
        if tensor.shape and tensor.shape[0] > self.limits.max_images:
            raise too_many(self.limits.max_images)
        images = self._images(tensor, model, is_wanted)
        return Decoded(
            images, frozenset(each.name for each in wanted), partial(_answer, model.name, request_id, wanted)
        )

    def _split(self) -> tuple[memoryview, memoryview]:
        body = memoryview(self.body)
        if self.json_size is None:
            return body, body[:0]
        if not re.fullmatch("[0-9]{1,12}", self.json_size) or int(self.json_size) > len(body):
            raise HTTPException(
                400, "Inference-Header-Content-Length has to be how many bytes of the body are the JSON text."
            )
        return body[: int(self.json_size)], body[int(self.json_size) :]

    def _images(self, tensor: Input, model: Model, is_wanted: Callable[[], bool]) -> npt.NDArray[np.uint8]:
        if tensor.datatype != "BYTES":
            return to_images(tensor, height=model.height, width=model.width)
        pictures = [(f"data[{i}]: ", each) for i, each in enumerate(to_files(tensor))]
        return decode_pictures(pictures, model, self.limits, is_wanted)


def _parse_outputs(content: dict[str, Any], model: Model) -> list[_Wanted]:
    """The outputs that a request names, or all of them; JSON unless it asks for binary data."""
    binary = _flag(content, "binary_data_output", default=False)
    outputs = optional(content, "outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise HTTPException(400, "`outputs` has to be a list of objects with a `name`.")
    names = [each.get("name") for each in outputs]
    unknown = [each for each in names if not isinstance(each, str) or each not in model.outputs]
    if unknown or len(set(names)) < len(names):
        raise HTTPException(400, f"`outputs` may name each of {', '.join(model.outputs)} once.")
    if not outputs:
        return [_Wanted(name, binary) for name in model.outputs]
    return [_Wanted(each["name"], _flag(each, "binary_data", default=binary)) for each in outputs]


def _flag(holder: dict[str, Any], name: str, *, default: bool) -> bool:
    parameters = optional(holder, "parameters", {})
    if not isinstance(parameters, dict):
        raise HTTPException(400, "`parameters` has to be an object.")
    unsupported = [each for each in parameters if each == "classification" or each.startswith("shared_memory")]
    if unsupported:
        raise HTTPException(400, f"The parameter {unsupported[0][:100]!r} is not supported here: leave it out.")
    flag = optional(parameters, name, default)
    if not isinstance(flag, bool):
        raise HTTPException(400, f"`{name}` has to be true or false.")
    return flag


def _answer(model_name: str, request_id: str | None, wanted: list[_Wanted], outputs: Outputs) -> Answer:
    described, blobs = [], []
    for each in wanted:
        array = outputs[each.name]
        tensor: dict[str, Any] = {"name": each.name, "datatype": "FP32", "shape": list(array.shape)}
        if each.binary:
            blobs.append(array.astype("<f4", copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = np.ascontiguousarray(array).reshape(-1)
        described.append(tensor)
    content: dict[str, Any] = {"model_name": model_name, "model_version": VERSION, "outputs": described}
    if request_id is not None:
        content["id"] = request_id
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return Answer(text, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return Answer(b"".join([text, *blobs]), headers)
