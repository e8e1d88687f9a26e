"""Whether a model file is as it was exported: the checksum at its end, and the example beside it."""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server import files

KEY = "checksum"
"""The metadata key of the checksum."""

# The largest difference from the example, relative to the largest value of an output. Processors add in another order;
# those without VNNI instructions clip sums of 8-bit products.
_TOLERANCE = 0.01
_INT8_TOLERANCE = 0.1

_BLOCK_BYTES = 2**20

_CHECKSUM = re.compile('"[0-9a-f]{64}"')


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether a file ends with the metadata entry of this checksum, the SHA-256 of all bytes before it.

    Args:
      path: the file.
      checksum: the value of the entry, a JSON string of 64 hexadecimal digits; no file has another one.

    Raises:
      OSError: the file cannot be read.
    """
    if not _CHECKSUM.fullmatch(checksum):
        return False
    entry = _field(14, _field(1, KEY.encode()) + _field(2, checksum.encode()))
    with files.open_file(path) as file:
        left = max(0, files.signature(file).size - len(entry))
        found = hashlib.sha256()
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            found.update(block)
            left -= len(block)
        return file.read() == entry and checksum == json.dumps(found.hexdigest())


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of a protobuf message whose number and length take one byte each."""
    return bytes([number << 3 | 2, len(content)]) + content


def read_description(path: Path) -> dict[str, Any] | None:
    """Returns the content of the JSON file beside a model file; None if it is missing or describes another file."""
    try:
        with files.open_file(description_of(path)) as file:
            description = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return description if isinstance(description, dict) and description.get("file") == path.name else None


def description_of(path: Path) -> Path:
    """Returns the JSON file that `python -m export` writes beside a model file."""
    return path.with_suffix(".json")


def example_of(path: Path) -> Path:
    """Returns the example that `python -m export` writes beside a model file."""
    return path.with_suffix("") / "example.npz"


def read_example(path: Path, count: int) -> dict[str, npt.NDArray[Any]] | None:
    """Returns the first pictures of the example beside a model file, with the outputs for them; None without one.

    Raises:
      ValueError: it cannot be read. The message is the reason.
    """
    try:
        with files.open_file(example_of(path)) as file, np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name])[:count] for name in arrays.files}
    except (FileNotFoundError, PermissionError):
        return None
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def find_difference(
    example: Mapping[str, npt.NDArray[Any]],
    run: Callable[[npt.NDArray[np.uint8]], Mapping[str, npt.NDArray[np.float32]]],
    *,
    is_int8: bool,
) -> str | None:
    """Runs a model on the pictures of an example, and returns the name of an output that differs, or None.

    Args:
      example: `image`, and the outputs for these pictures.
      run: runs the model.
      is_int8: whether the model is quantized, and so differs more between processors.
    """
    found = run(example["image"])
    for name in found.keys() & example.keys():
        expected = np.asarray(example[name], np.float64)
        largest = (_INT8_TOLERANCE if is_int8 else _TOLERANCE) * np.abs(expected).max(initial=0)
        # Written so that NaN differs as well.
        if found[name].shape != expected.shape or not np.all(np.abs(found[name] - expected) <= largest):
            return name
    return None
