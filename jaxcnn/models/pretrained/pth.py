"""Reads the tensors of a PyTorch checkpoint (`.pth`) without PyTorch, and without running anything in the file.

A checkpoint is a pickle: a program that may call any function. This reader knows the few names that a dictionary of
tensors needs and refuses all others. It reads both of PyTorch's formats: the zip file that version 1.6 introduced, and
the stream of pickles before it.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxcnn.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first number of a checkpoint in the format before PyTorch 1.6."""

STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
"""Element types by the name of PyTorch's class for a block of memory."""

WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
"""Keys under which training scripts keep the tensors beside optimizer state and settings."""


class _RefusedError(Exception):
    """The file is not a dictionary of tensors; the message says why."""


class _Storage(NamedTuple):
    """A block of memory that tensors are views of: its place in the file, its type and its length in elements.

    A tuple, because a pickle can set the attributes of any other object after its checks.
    """

    key: str
    dtype: np.dtype[Any]
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, not checked yet. Offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint by their names.

    Args:
      path: a file that `torch.save` wrote of a `state_dict`, or of a dictionary that holds one under `state_dict`,
        `model` or the like.

    Raises:
      UserError: the file cannot be read, is damaged, or holds anything but tensors, text and numbers.
    """
    try:
        with path.open("rb") as file:
            found = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
            return _state_dict(found)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except _RefusedError as error:
        raise UserError(f"{path} is refused: {error}; give a state_dict saved by torch.save") from error
    # A damaged pickle raises errors of any kind.
    except Exception as error:
        kind = type(error).__name__
        raise UserError(f"{path} is not a readable PyTorch checkpoint ({kind}); download it again") from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        (program,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = program.removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _RefusedError("it is compressed, which PyTorch does not do")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise _RefusedError("its numbers are big-endian")
        tree = _load(io.BytesIO(archive.read(program)))
        blocks: dict[str, bytes] = {}
        for storage in _storages(tree):
            if storage.key not in blocks:
                blocks[storage.key] = archive.read(f"{folder}data/{storage.key}")
        return _materialize(tree, blocks)


def _read_legacy(file: BinaryIO) -> Any:
    file.seek(0)
    if _load(file) != LEGACY_MAGIC:
        raise _RefusedError("it is not a PyTorch checkpoint")
    _load(file)  # Protocol version
    system = _load(file)
    if system.get("little_endian") is not True:
        raise _RefusedError("its numbers are big-endian")
    tree = _load(file)
    keys = _load(file)
    # The blocks follow in the order of the keys, each after its length.
    known = {storage.key: storage for storage in _storages(tree)}
    blocks: dict[str, bytes] = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little")
        if key not in known or length != known[key].length:
            raise _RefusedError(f"the length of its block {key!r} is not that of its tensors")
        blocks[key] = file.read(length * known[key].dtype.itemsize)
    return _materialize(tree, blocks)


def _load(file: BinaryIO | io.BytesIO) -> Any:
    """Reads the next pickle of a file.

    It is refused if it gives an object a number that is larger than its position: the reader keeps a table of all
    numbers up to the largest, which would take any memory.
    """
    start = file.tell()
    for opcode, number, position in pickletools.genops(file):
        if opcode.name in ("PUT", "LONG_BINPUT") and (number or 0) > (position or 0) - start:
            raise _RefusedError("it gives an object a number that is too large")
    file.seek(start)
    return _TensorUnpickler(file).load()


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, text and numbers, and notes tensors; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a name that a dictionary of tensors needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return _new_dict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            return _new_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGES:
            return name
        raise _RefusedError(f"it asks for {module}.{name}, which could run a program")

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage of a reference: ("storage", type, key, device, length, ...)."""
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or dtype not in STORAGES or any(part is not None for part in view):
            raise _RefusedError("it refers to something that is not a tensor's memory")
        if not isinstance(key, str) or not isinstance(length, int) or length < 0:
            raise _RefusedError("a reference to a tensor's memory is invalid")
        return _Storage(key, STORAGES[dtype], length)


def _new_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(*arguments)


def _new_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _storages(tree: Any) -> list[_Storage]:
    """Returns the storage of every tensor in a tree of dictionaries and lists."""
    found, seen, waiting = list[_Storage](), set[int](), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Tensor):
            found.append(node.storage)
        elif isinstance(node, Mapping | list | tuple) and id(node) not in seen:
            seen.add(id(node))  # A pickle may hold a list that holds itself
            waiting += node.values() if isinstance(node, Mapping) else node
    return found


def _materialize(tree: Any, blocks: Mapping[str, bytes]) -> Any:
    """Returns a dictionary with arrays in the place of its tensors, one level of wrapping included."""
    if not isinstance(tree, Mapping):
        raise _RefusedError(f"it holds a {type(tree).__name__}, not a dictionary of tensors")
    return {
        name: _array(value, blocks)
        if isinstance(value, _Tensor)
        else {inner: _array(leaf, blocks) for inner, leaf in value.items() if isinstance(leaf, _Tensor)}
        if isinstance(value, Mapping)
        else None
        for name, value in tree.items()
    }


def _array(tensor: _Tensor, blocks: Mapping[str, bytes]) -> np.ndarray:
    """Returns a read-only view of the block that the tensor lies in: equal blocks cost their memory once."""
    _check_bounds(tensor)
    storage = tensor.storage
    block = blocks[storage.key]
    if len(block) != storage.length * storage.dtype.itemsize:
        raise _RefusedError(f"its block {storage.key!r} has {len(block)} bytes, its tensors need another number")
    memory = np.frombuffer(block, storage.dtype)[tensor.offset :]
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(memory, tensor.shape, strides, writeable=False)


def _check_bounds(tensor: _Tensor) -> None:
    """Raises `_RefusedError` unless every element of the tensor lies in its storage, where NumPy would read on."""
    storage, offset, shape, strides = tensor
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise _RefusedError("a tensor in it is invalid")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise _RefusedError("a tensor in it is invalid")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    size = math.prod(map(int, shape))
    if size > storage.length or (size and last >= storage.length):
        raise _RefusedError("a tensor in it reaches beyond its memory")


def _state_dict(tree: dict[Any, Any]) -> dict[str, np.ndarray]:
    for wrapper in WRAPPERS:
        if isinstance(tree.get(wrapper), dict):
            tree = tree[wrapper]
            break
    tensors = {str(name): value for name, value in tree.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise _RefusedError("it holds no tensors")
    # Scripts that trained on several devices put this before every name.
    return {name.removeprefix("module."): value for name, value in tensors.items()}
