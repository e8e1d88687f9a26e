"""The Open Inference Protocol (KServe's version 2) over HTTP, with the binary tensor data extension."""

import importlib.metadata
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from starlette.exceptions import HTTPException

from server.model import Model
from server.protocols import Answer, Decoded, Outputs, Work
from server.protocols.compression import IDENTITY, decompress, largest_size
from server.protocols.native import decode_pictures, too_many
from server.protocols.tensor import parse_input, to_files, to_images
from server.protocols.text import MAX_VALUES, cost_of, count_values, optional, parse_object, too_many_values
from server.settings import Settings

VERSION = "1"
"""The only version of the model; one is served at a time."""

_EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")

type _Pictures = npt.NDArray[np.uint8] | list[tuple[str, bytes]]
"""Decoded pictures, or files with their places in the request."""

_HINT = 'send {"inputs": [{"name": "image", "datatype": ..., "shape": ..., "data": ...}]}'


def server_metadata() -> dict[str, Any]:
    """Returns the content of `GET /v2`."""
    return {"name": "jaxcnn", "version": server_version(), "extensions": list(_EXTENSIONS)}


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


def model_configuration(model: Model, *, max_batch: int) -> dict[str, Any]:
    """Returns the content of `GET /v2/models/NAME/config`, which is an extension of Triton."""
    outputs = [{"name": name, "data_type": "TYPE_FP32", "dims": list(shape)} for name, shape in model.outputs.items()]
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_batch,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [model.height, model.width, 3]}],
        "output": outputs,
    }


def model_statistics(model: Model, measured: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Returns statistics of the server since its start in Triton's form.

    Args:
      model: the model that is served now.
      measured: count and sum, as `ModelMetrics.statistics` returns them.
    """

    def duration(name: str) -> dict[str, int]:
        count, seconds = measured[name]
        return {"count": int(count), "ns": int(seconds * 1e9)}

    parts = {"queue": "queue", "compute_input": "decode", "compute_infer": "inference", "compute_output": "encode"}
    runs, pictures = measured["batch"]
    return {
        "name": model.name,
        "version": VERSION,
        "inference_count": int(pictures),
        "execution_count": int(runs),
        "inference_stats": {part: duration(name) for part, name in parts.items()},
    }


@dataclass(frozen=True)
class _RequestedOutput:
    """An output that the client asks for."""

    name: str
    binary: bool
    classes: int = 0
    """How many of the largest values to return, with the names of their classes; 0: the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class InferQuery:
    """A request to /v2/models/NAME/infer."""

    body: bytes
    encoding: str = IDENTITY
    """How the body is compressed."""
    json_size: str | None
    """The header Inference-Header-Content-Length: length of the JSON text in the body; None if all of it is JSON."""
    limits: Settings

    @property
    def size(self) -> int:
        """Length of the body in bytes, or the largest that it may have once decompressed."""
        return largest_size(self.body, self.encoding, max_bytes=self.limits.max_body_bytes)

    def decode(self, model: Model, work: Work) -> Decoded:
        """Parses the body and decodes its pictures.

        Raises:
          HTTPException: 400 malformed, 413 too many pictures or values.
          AbandonedError: nobody waits any more.
        """
        request_id, requested, pictures = self._parse(model, work)
        images = pictures if isinstance(pictures, np.ndarray) else decode_pictures(pictures, model, self.limits, work)
        names = frozenset(output.name for output in requested)
        return Decoded(images, names, partial(_encode, model, request_id, requested))

    def _parse(self, model: Model, work: Work) -> tuple[str | None, list[_RequestedOutput], _Pictures]:
        """Returns what the body says; its text is not kept while the pictures are decoded."""
        text, binary = self._split()
        has_many_values = count_values(text) > MAX_VALUES
        if has_many_values:
            self._check_tensor(text, model, work)
        content = parse_object(text, _HINT)
        request_id = content.get("id")
        if request_id is not None and not isinstance(request_id, str):
            raise HTTPException(400, "`id` must be a string.")
        requested = _parse_outputs(content, model)
        tensor = parse_input(content, binary)
        if tensor.shape and tensor.shape[0] > self.limits.max_images:
            raise too_many(self.limits.max_images)
        if tensor.datatype != "BYTES":
            return request_id, requested, to_images(tensor, height=model.height, width=model.width)
        # What parsing takes has been counted for numbers alone.
        if has_many_values:
            raise too_many_values()
        return request_id, requested, [(f"data[{i}]: ", data) for i, data in enumerate(to_files(tensor))]

    def _check_tensor(self, text: bytes, model: Model, work: Work) -> None:
        """Decides, before a JSON text of many values is parsed, whether it may be parsed now."""
        if text.count(b",") > self.limits.max_images * model.height * model.width * 3 + MAX_VALUES:
            raise too_many(self.limits.max_images)
        cost = cost_of(text)
        if cost.bytes > self.limits.max_decode_bytes or cost.pixels > self.limits.max_request_pixels:
            raise HTTPException(
                413,
                "Parsing the JSON text of this request would take too much memory or time: send the tensor as binary"
                " data, or fewer pictures at once.",
            )
        work.check_cost(cost)

    def _split(self) -> tuple[bytes, memoryview]:
        """Returns the JSON text and the binary data after it."""
        body = decompress(self.body, self.encoding, max_bytes=self.limits.max_body_bytes)
        if self.json_size is None:
            return body, memoryview(b"")
        if not re.fullmatch("[0-9]{1,12}", self.json_size) or int(self.json_size) > len(body):
            raise HTTPException(
                400, "The header Inference-Header-Content-Length must be the length of the JSON text in the body."
            )
        return body[: int(self.json_size)], memoryview(body)[int(self.json_size) :]


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
    return [
        _RequestedOutput(output["name"], _flag(output, "binary_data", default=binary), _count_classes(output, model))
        for output in outputs
    ]


def _count_classes(output: dict[str, Any], model: Model) -> int:
    """Returns the parameter `classification` of an output, which Triton's clients call `class_count`."""
    count = optional(optional(output, "parameters", {}), "classification", 0)
    if type(count) is not int or not 0 <= count <= len(model.names):
        raise HTTPException(400, f"`classification` must be an integer from 0 to {len(model.names)}.")
    if count and model.outputs[output["name"]] != (len(model.names),):
        raise HTTPException(400, f"The output {output['name']} has no classes: leave out `classification`.")
    return count


def _flag(holder: dict[str, Any], name: str, *, default: bool) -> bool:
    """Returns a boolean of the holder's `parameters`."""
    parameters = optional(holder, "parameters", {})
    if not isinstance(parameters, dict):
        raise HTTPException(400, "`parameters` must be an object.")
    unsupported = [key for key in parameters if key.startswith("shared_memory")]
    if unsupported:
        raise HTTPException(400, f"The parameter {unsupported[0][:100]!r} is not supported: leave it out.")
    flag = optional(parameters, name, default)
    if not isinstance(flag, bool):
        raise HTTPException(400, f"`{name}` must be true or false.")
    return flag


def _encode(model: Model, request_id: str | None, requested: list[_RequestedOutput], outputs: Outputs) -> Answer:
    # Describe each tensor, with its data in JSON or in a blob.
    described, blobs = [], []
    for output in requested:
        array = outputs[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(array.shape)}
        texts = _classify(array, output.classes, model.names) if output.classes else []
        if output.classes:
            tensor |= {"datatype": "BYTES", "shape": [len(array), output.classes]}
        if output.binary:
            blobs.append(_join(texts) if texts else array.astype("<f4", copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = texts or np.ascontiguousarray(array).reshape(-1)
        described.append(tensor)
    content: dict[str, Any] = {"model_name": model.name, "model_version": VERSION, "outputs": described}
    if request_id is not None:
        content["id"] = request_id
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    # Append the blobs, in the order of their tensors.
    if not blobs:
        return Answer(text, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return Answer(b"".join([text, *blobs]), headers)


def _classify(array: npt.NDArray[np.float32], count: int, names: tuple[str, ...]) -> list[str]:
    """Returns the largest values of each row in Triton's form `VALUE:CLASS:NAME`."""
    best = np.argsort(-array, axis=1, kind="stable")[:, :count]
    return [f"{row[i]:f}:{i}:{names[i]}" for row, order in zip(array, best, strict=True) for i in order]


def _join(texts: list[str]) -> bytes:
    """Returns strings as the binary extension has them: the length of each as a little-endian uint32 before it."""
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
