"""The few functions of TensorFlow that data sets of TFDS call while they are prepared.

TFDS reaches TensorFlow through one lazy module, which imports it at the first use of a name. `installed_shim` gives
that module these functions for a while. `sys.modules` does not change, and TensorFlow is used where it is installed.
"""

import contextlib
import glob
import importlib.util
import io
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

OPEN_FILES = 4096
"""TFDS sorts a split of more than 1 GB through 1,000 open files; the usual limit is 1,024, on macOS 256."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels."""

_installed = threading.Lock()


@contextlib.contextmanager
def installed_shim() -> Iterator[None]:
    """Lets TFDS prepare a data set without TensorFlow; names that the shim lacks raise `ImportError`.

    The lazy module and the limit on open files belong to the whole process: one thread at a time holds them.
    """
    with _installed:
        # Users with TensorFlow get its own behaviour.
        if importlib.util.find_spec("tensorflow"):
            yield
            return
        with _many_open_files():
            vars(tensorflow)["_module"] = TENSORFLOW  # The field in which etils.epy keeps the imported module
            try:
                yield
            finally:
                del vars(tensorflow)["_module"]


@contextlib.contextmanager
def _many_open_files() -> Iterator[None]:
    """Raises the limit on open files to `OPEN_FILES`, or as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        yield
        return
    # A process may raise its soft limit up to the hard one.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if 0 <= soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Names(SimpleNamespace):
    """A module of TensorFlow that has only some of its names."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"the shim for tensorflow has no {name}", name="tensorflow")


class Tensor(np.ndarray):
    """An array with the method by which TensorFlow's tensors become arrays."""

    def numpy(self) -> np.ndarray:
        """Returns a plain array."""
        return np.asarray(self)


class Encoded(bytes):
    """The content of a picture's file, with the same method."""

    def numpy(self) -> bytes:
        """Returns plain bytes."""
        return bytes(self)


def open_file(name: str | os.PathLike[str], mode: str = "r") -> IO[Any]:
    """Opens a file as `tf.io.gfile.GFile`: text is UTF-8, and its line ends do not change."""
    return open(name, mode) if "b" in mode else open(name, mode, encoding="utf-8", newline="\n")


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """Lists a folder as `tf.io.gfile.listdir`, but sorted."""
    return sorted(os.listdir(path))


def find_files(pattern: str | os.PathLike[str]) -> list[str]:
    """Finds files as `tf.io.gfile.glob` of one pattern."""
    return sorted(glob.glob(os.fspath(pattern)))


def walk(top: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks as `tf.io.gfile.walk`, but sorted: caltech101 draws its splits in this order, on every machine the same."""
    for folder, folders, files in os.walk(top):
        folders.sort()
        yield folder, folders, sorted(files)


def as_text(text: str | bytes) -> str:
    """Decodes as `tf.compat.as_text`."""
    return text.decode() if isinstance(text, bytes) else text


def as_bytes(text: str | bytes) -> bytes:
    """Encodes as `tf.compat.as_bytes`."""
    return text.encode() if isinstance(text, str) else text


def decode(contents: bytes, channels: int = 0) -> Tensor:
    """Decodes as `tf.image.decode_image`: pixels [height, width, channels] as stored, without the EXIF orientation.

    Args:
      contents: of a picture's file.
      channels: 1, 3 or 4; 0 for the number in the file.
    """
    with Image.open(io.BytesIO(contents)) as image:
        mode = MODES[channels] if channels else image.mode if image.mode in MODES.values() else "RGB"
        pixels = np.atleast_3d(np.asarray(image.convert(mode)))
    return pixels.view(Tensor)


def encode_png(image: np.ndarray) -> Encoded:
    """Encodes as `tf.image.encode_png`: uint8 [height, width, 1 to 4], or uint16 with one channel."""
    return _encode(image, "PNG")


def encode_jpeg(image: np.ndarray, format: str = "", quality: int = 95) -> Encoded:
    """Encodes as `tf.io.encode_jpeg`: uint8 [height, width, 1 or 3]; `format` follows from the number of channels."""
    del format
    return _encode(image, "JPEG", quality=quality)


def _encode(image: np.ndarray, format: str, **options: int) -> Encoded:
    file = io.BytesIO()
    pixels = np.asarray(image)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format, **options)
    return Encoded(file.getvalue())


TENSORFLOW = Names(
    compat=Names(as_text=as_text, as_bytes=as_bytes),
    errors=Names(ResourceExhaustedError=type("ResourceExhaustedError", (Exception,), {})),  # TFDS catches this one
    executing_eagerly=lambda: True,
    image=Names(
        decode_image=decode, decode_jpeg=decode, decode_png=decode, encode_jpeg=encode_jpeg, encode_png=encode_png
    ),
    io=Names(
        encode_jpeg=encode_jpeg,
        gfile=Names(
            GFile=open_file,
            exists=os.path.exists,
            glob=find_files,
            isdir=os.path.isdir,
            listdir=list_folder,
            remove=os.remove,
            walk=walk,
        ),
    ),
    shape=np.shape,
)
"""The module `tensorflow`, as far as data sets of TFDS need it."""
