"""The tensors of the Open Inference Protocol, as JSON and in its binary extension."""

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException

from server.protocols.text import optional, parse_base64


@dataclass(frozen=True)
class Input:
    """The `image` of an inference request, with its data still as it came."""

    datatype: str
    shape: tuple[int, ...]
    data: Any
    """What JSON gave, or the bytes of a binary tensor."""

    @property
    def is_binary(self) -> bool:
        """Whether the data came after the JSON text."""
        return isinstance(self.data, memoryview)


def parse_input(content: dict[str, Any], binary: memoryview) -> Input:
    """Reads the one element of `inputs`.

    Args:
        content: the JSON object of the request.
        binary: what follows the JSON text.

    Raises:
        HTTPException: 400.
    """
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise HTTPException(400, "`inputs` has to be a list of one tensor, named `image`.")
    tensor = inputs[0]
    if tensor.get("name") != "image":
        raise HTTPException(400, f"There is no input {str(tensor.get('name'))[:100]!r}: name the tensor `image`.")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(each) is int and 0 < each < 2**31 for each in shape):
        raise HTTPException(400, "`shape` has to be a list of positive whole numbers.")
    datatype = tensor.get("datatype")
    if datatype not in ("UINT8", "FP32", "BYTES"):
        raise HTTPException(400, "`datatype` has to be UINT8, FP32, or BYTES for encoded pictures.")
    return Input(datatype, tuple(shape), _data(tensor, binary))


def _data(tensor: dict[str, Any], binary: memoryview) -> Any:
    parameters = optional(tensor, "parameters", {})
    if not isinstance(parameters, dict):
        raise HTTPException(400, "`parameters` has to be an object.")
    if any(each.startswith("shared_memory") for each in parameters):
        raise HTTPException(400, "There is no shared memory here: send the data with the request.")
    size = parameters.get("binary_data_size")
    if size is None:
        if tensor.get("data") is None:
            raise HTTPException(400, "The tensor has neither `data` nor a `binary_data_size` in its parameters.")
        if len(binary):
            raise HTTPException(400, "There are bytes after the JSON text, but no tensor has a `binary_data_size`.")
        return tensor["data"]
    if tensor.get("data") is not None or type(size) is not int or size != len(binary):
        raise HTTPException(
            400,
            f"`binary_data_size` has to be the number of bytes after the JSON text, which is {len(binary)}, in place of"
            " `data`. Is the header Inference-Header-Content-Length right?",
        )
    return binary


def to_images(tensor: Input, *, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The pixels of a UINT8 or FP32 tensor; those of FP32 run from 0 to 255 too, and are rounded.

    Returns:
        uint8 [pictures, height, width, 3].

    Raises:
        HTTPException: 400, another shape, or values out of range.
    """
    if len(tensor.shape) != 4 or tensor.shape[1:] != (height, width, 3):
        raise HTTPException(400, f"`shape` has to be [pictures, {height}, {width}, 3], or [pictures] for BYTES.")
    dtype = np.dtype("<f4" if tensor.datatype == "FP32" else np.uint8)
    if tensor.is_binary:
        if len(tensor.data) != math.prod(tensor.shape) * dtype.itemsize:
            raise _wrong_count(tensor)
        values: npt.NDArray[Any] = np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    else:
        values = _from_lists(tensor)
    if not np.all((values >= 0) & (values <= 255)):  # NaN is not either.
        raise HTTPException(400, "The values have to be from 0 to 255.")
    return (np.rint(values) if values.dtype.kind == "f" else values).astype(np.uint8)


def _from_lists(tensor: Input) -> npt.NDArray[Any]:
    """JSON numbers, flat or nested as the shape says."""
    values = tensor.data
    shape = [len(values)] if isinstance(values, list) else []
    while isinstance(values, list) and values and isinstance(values[0], list):
        shape.append(len(values[0]))
        if not all(isinstance(each, list) and len(each) == shape[-1] for each in values):
            raise _wrong_count(tensor)
        values = list(itertools.chain.from_iterable(values))
    kinds = (int, float) if tensor.datatype == "FP32" else (int,)
    # numpy would take strings, and make room for as many as there are of the longest.
    if not isinstance(values, list) or not set(map(type, values)) <= set(kinds):
        kind = "numbers" if tensor.datatype == "FP32" else "whole numbers"
        raise HTTPException(400, f"`data` has to be a list of {kind}, flat or nested as the shape says.")
    if tuple(shape) not in ((math.prod(tensor.shape),), tensor.shape):
        raise _wrong_count(tensor)
    return np.array(values, np.float64).reshape(tensor.shape)


def to_files(tensor: Input) -> list[bytes]:
    """The elements of a BYTES tensor: encoded pictures, in base64 where they came as JSON.

    Raises:
        HTTPException: 400.
    """
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
        raise HTTPException(400, "`shape` has to be [pictures] or [pictures, 1] for BYTES.")
    files = _split(tensor.data) if tensor.is_binary else _flatten(tensor.data)
    if len(files) != tensor.shape[0]:
        raise _wrong_count(tensor)
    return files


def _split(data: memoryview) -> list[bytes]:
    """Takes apart elements of a little-endian uint32 length and as many bytes."""
    elements, start = [], 0
    while start < len(data):
        end = start + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, start)[0]
        if end > len(data) or end < start + 4:
            raise HTTPException(400, "The binary data ends within an element: each is a uint32 length and its bytes.")
        elements.append(bytes(data[start + 4 : end]))
        start = end
    return elements


def _flatten(data: Any) -> list[bytes]:
    if not isinstance(data, list):
        raise HTTPException(400, "`data` has to be a list of base64 strings.")
    flat = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]
    return [parse_base64(f"data[{i}]", each) for i, each in enumerate(flat)]


def _wrong_count(tensor: Input) -> HTTPException:
    return HTTPException(400, f"The data does not fill the shape {list(tensor.shape)} exactly.")
