"""The Open Inference Protocol (KServe's version 2) over HTTP, with the binary tensor data extension."""

import importlib.metadata
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from starlette.exceptions import HTTPException

from server.model import Model
from server.protocols import Answer, Decoded, Outputs, Work
from server.protocols.native import decode_pictures, too_many
from server.protocols.tensor import Input, parse_input, to_files, to_images
from server.protocols.text import optional, parse_object
from server.settings import Settings

VERSION = "1"
"""The only version of the model; one is served at a time."""

_HINT = 'send {"inputs": [{"name": "image", "datatype": ..., "shape": ..., "data": ...}]}'


def server_metadata() -> dict[str, Any]:
    """Returns the content of `GET /v2`."""
    return {"name": "jaxcnn", "version": server_version(), "extensions": ["binary_tensor_data"]}


def server_version() -> str:
    """Returns the installed version of this package."""
    try:
        return importlib.metadata.version("jaxcnn")
    except importlib.metadata.PackageNotFoundError:
        # The server runs from a folder without being installed.
        return "unknown"


def model_metadata(model: Model) -> dict[str, Any]:
    """Returns the content of `GET /v2/models/NAME`."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, model.height, model.width, 3]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, *shape]} for name, shape in model.outputs.items()],
    }


@dataclass(frozen=True)
class _RequestedOutput:
    """An output that the client asks for."""

    name: str
    binary: bool


@dataclass(frozen=True, kw_only=True)
class InferQuery:
    """A request to /v2/models/NAME/infer."""

    body: bytes
    json_size: str | None
    """The header Inference-Header-Content-Length: length of the JSON text in the body; None if all of it is JSON."""
    limits: Settings

    @property
    def size(self) -> int:
        """Length of the body in bytes."""
        return len(self.body)

    def decode(self, model: Model, work: Work) -> Decoded:
        """Parses the body and decodes its pictures.

        Raises:
          HTTPException: 400 malformed, 413 too many pictures.
          AbandonedError: nobody waits any more.
        """
        # Parse what is small.
        text, binary = self._split()
        content = parse_object(text, _HINT)
        request_id = content.get("id")
        if request_id is not None and not isinstance(request_id, str):
            raise HTTPException(400, "`id` must be a string.")
        requested = _parse_outputs(content, model)
        tensor = parse_input(content, binary)
        # Decode the pictures, if there are not too many.
        if tensor.shape and tensor.shape[0] > self.limits.max_images:
            raise too_many(self.limits.max_images)
        images = self._images(tensor, model, work)
        names = frozenset(output.name for output in requested)
        return Decoded(images, names, partial(_encode, model.name, request_id, requested))

    def _split(self) -> tuple[memoryview, memoryview]:
        """Returns the JSON text and the binary data after it."""
        body = memoryview(self.body)
        if self.json_size is None:
            return body, body[:0]
        if not re.fullmatch("[0-9]{1,12}", self.json_size) or int(self.json_size) > len(body):
            raise HTTPException(
                400, "The header Inference-Header-Content-Length must be the length of the JSON text in the body."
            )
        return body[: int(self.json_size)], body[int(self.json_size) :]

    def _images(self, tensor: Input, model: Model, work: Work) -> npt.NDArray[np.uint8]:
        if tensor.datatype != "BYTES":
            return to_images(tensor, height=model.height, width=model.width)
        pictures = [(f"data[{i}]: ", data) for i, data in enumerate(to_files(tensor))]
        return decode_pictures(pictures, model, self.limits, work)


def _parse_outputs(content: dict[str, Any], model: Model) -> list[_RequestedOutput]:
    """Returns the outputs that a request names, or all of them; in JSON unless it asks for binary data."""
    binary = _flag(content, "binary_data_output", default=False)
    outputs = optional(content, "outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise HTTPException(400, "`outputs` must be a list of objects with a `name`.")
    names = [output.get("name") for output in outputs]
    unknown = [name for name in names if not isinstance(name, str) or name not in model.outputs]
    if unknown or len(set(names)) < len(names):
        raise HTTPException(400, f"`outputs` may name each of {', '.join(model.outputs)} once, and nothing else.")
    if not outputs:
        return [_RequestedOutput(name, binary) for name in model.outputs]
    return [_RequestedOutput(output["name"], _flag(output, "binary_data", default=binary)) for output in outputs]


def _flag(holder: dict[str, Any], name: str, *, default: bool) -> bool:
    """Returns a boolean of the holder's `parameters`."""
    parameters = optional(holder, "parameters", {})
    if not isinstance(parameters, dict):
        raise HTTPException(400, "`parameters` must be an object.")
    unsupported = [key for key in parameters if key == "classification" or key.startswith("shared_memory")]
    if unsupported:
        raise HTTPException(400, f"The parameter {unsupported[0][:100]!r} is not supported: leave it out.")
    flag = optional(parameters, name, default)
    if not isinstance(flag, bool):
        raise HTTPException(400, f"`{name}` must be true or false.")
    return flag


def _encode(model_name: str, request_id: str | None, requested: list[_RequestedOutput], outputs: Outputs) -> Answer:
    # Describe each tensor, with its data in JSON or in a blob.
    described, blobs = [], []
    for output in requested:
        array = outputs[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(array.shape)}
        if output.binary:
            blobs.append(array.astype("<f4", copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = np.ascontiguousarray(array).reshape(-1)
        described.append(tensor)
    content: dict[str, Any] = {"model_name": model_name, "model_version": VERSION, "outputs": described}
    if request_id is not None:
        content["id"] = request_id
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    # Append the blobs, in the order of their tensors.
    if not blobs:
        return Answer(text, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return Answer(b"".join([text, *blobs]), headers)
