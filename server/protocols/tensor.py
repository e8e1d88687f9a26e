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
    """The tensor `image` of an inference request, with its data not yet parsed."""

    datatype: str
    shape: tuple[int, ...]
    data: Any
    """A JSON value, or the bytes of a binary tensor as a memoryview."""

    @property
    def is_binary(self) -> bool:
        """Whether the data came after the JSON text."""
        return isinstance(self.data, memoryview)


def parse_input(content: dict[str, Any], binary: memoryview) -> Input:
    """Parses the one element of `inputs`.

    Args:
      content: the JSON object of the request.
      binary: the bytes after the JSON text.

    Raises:
      HTTPException: 400, the tensor is malformed.
    """
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise HTTPException(400, "`inputs` must be a list of one tensor, named `image`.")
    tensor = inputs[0]
    if tensor.get("name") != "image":
        raise HTTPException(400, f"There is no input {str(tensor.get('name'))[:100]!r}: name the tensor `image`.")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side < 2**31 for side in shape):
        raise HTTPException(400, "`shape` must be a list of positive integers.")
    datatype = tensor.get("datatype")
    if datatype not in ("UINT8", "FP32", "BYTES"):
        raise HTTPException(400, "`datatype` must be UINT8, FP32, or BYTES for picture files.")
    return Input(datatype, tuple(shape), _data(tensor, binary))


def _data(tensor: dict[str, Any], binary: memoryview) -> Any:
    parameters = optional(tensor, "parameters", {})
    if not isinstance(parameters, dict):
        raise HTTPException(400, "`parameters` must be an object.")
    if any(name.startswith("shared_memory") for name in parameters):
        raise HTTPException(400, "Shared memory is not supported: send the data with the request.")
    # Data in JSON.
    size = parameters.get("binary_data_size")
    if size is None:
        if tensor.get("data") is None:
            raise HTTPException(400, "The tensor has no data: send `data`, or `binary_data_size` in its parameters.")
        if len(binary):
            raise HTTPException(
                400,
                "There are bytes after the JSON text, but no tensor has a `binary_data_size`: set it, or omit them.",
            )
        return tensor["data"]
    # Binary data. As there is only one tensor, it must take all bytes.
    if tensor.get("data") is not None or type(size) is not int or size != len(binary):
        raise HTTPException(
            400,
            f"`binary_data_size` must be the number of bytes after the JSON text, which is {len(binary)}, and replaces"
            " `data`: check it and the header Inference-Header-Content-Length.",
        )
    return binary


def to_images(tensor: Input, *, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Returns the pixels of a UINT8 or FP32 tensor; FP32 values are from 0 to 255 too, and are rounded.

    Returns:
      uint8 [pictures, height, width, 3].

    Raises:
      HTTPException: 400, wrong shape, or values out of range.
    """
    if len(tensor.shape) != 4 or tensor.shape[1:] != (height, width, 3):
        raise HTTPException(400, f"`shape` must be [pictures, {height}, {width}, 3], or [pictures] for BYTES.")
    # The binary extension is little-endian.
    dtype = np.dtype("<f4" if tensor.datatype == "FP32" else np.uint8)
    if tensor.is_binary:
        if len(tensor.data) != math.prod(tensor.shape) * dtype.itemsize:
            raise _wrong_count(tensor)
        values: npt.NDArray[Any] = np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    else:
        values = _from_lists(tensor)
    # Written so that NaN is refused as well.
    if not np.all((values >= 0) & (values <= 255)):
        raise HTTPException(400, "The pixel values must be from 0 to 255.")
    return (np.rint(values) if values.dtype.kind == "f" else values).astype(np.uint8)


def _from_lists(tensor: Input) -> npt.NDArray[Any]:
    """Returns JSON numbers as an array; they may be a flat list, or nested like the shape."""
    # Flatten one level at a time, checking that all lists of a level are equally long.
    values = tensor.data
    shape = [len(values)] if isinstance(values, list) else []
    while isinstance(values, list) and values and isinstance(values[0], list):
        shape.append(len(values[0]))
        if not all(isinstance(item, list) and len(item) == shape[-1] for item in values):
            raise _wrong_count(tensor)
        values = list(itertools.chain.from_iterable(values))
    # Check the types here: numpy would accept strings, and make every element as large as the longest of them.
    kinds = (int, float) if tensor.datatype == "FP32" else (int,)
    if not isinstance(values, list) or not set(map(type, values)) <= set(kinds):
        kind = "numbers" if tensor.datatype == "FP32" else "integers"
        raise HTTPException(400, f"`data` must be a list of {kind}, flat or nested like the shape.")
    if tuple(shape) not in ((math.prod(tensor.shape),), tensor.shape):
        raise _wrong_count(tensor)
    return np.array(values, np.float64).reshape(tensor.shape)


def to_files(tensor: Input) -> list[bytes]:
    """Returns the elements of a BYTES tensor: picture files, which JSON holds in base64.

    Raises:
      HTTPException: 400, wrong shape, or malformed elements.
    """
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
        raise HTTPException(400, "`shape` must be [pictures] or [pictures, 1] for BYTES.")
    elements = _split(tensor.data, tensor.shape[0]) if tensor.is_binary else _flatten(tensor.data)
    # Check their number first: a body may have millions.
    if len(elements) != tensor.shape[0]:
        raise _wrong_count(tensor)
    return elements if tensor.is_binary else [parse_base64(f"data[{i}]", text) for i, text in enumerate(elements)]


def _split(data: memoryview, count: int) -> list[bytes]:
    """Splits binary elements, each of which is a little-endian uint32 length and as many bytes.

    Stops after one more than `count`.
    """
    elements: list[bytes] = []
    start = 0
    while start < len(data) and len(elements) <= count:
        end = start + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, start)[0]
        if end > len(data) or end < start + 4:
            raise HTTPException(
                400, "The binary data ends within an element: send each as a uint32 length and as many bytes."
            )
        elements.append(bytes(data[start + 4 : end]))
        start = end
    return elements


def _flatten(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise HTTPException(400, "`data` must be a list of base64 strings.")
    return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]


def _wrong_count(tensor: Input) -> HTTPException:
    return HTTPException(
        400, f"The data does not fill the shape {list(tensor.shape)} exactly: send as many values as it has."
    )
