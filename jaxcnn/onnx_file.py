"""An exported model, opened with ONNX Runtime. Imports neither JAX nor what needs it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import UInt8

from jaxcnn.data.resize import STRETCH, Resize
from jaxcnn.errors import UserError
from jaxcnn.typed_json import decode

WORKDIR_FILE = "model.onnx"
"""The exported model in a workdir."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The part of an exported file's metadata that predictions need. The fields are keys of `Metadata`.

    Attributes:
      names: class names, in the order of the outputs.
      image_size: height and width of the input in pixels.
      resize: how a picture becomes the input; files of earlier versions stretch it.
    """

    names: tuple[str, ...]
    image_size: tuple[int, int]
    resize: Resize = STRETCH


@dataclass(frozen=True)
class OnnxModel:
    """An exported model and what it takes to use it. Use `open_model`.

    Attributes:
      path: the file.
      session: the session, which several threads may run at once; each run uses one thread.
      preparation: its classes, and how pictures are prepared.
      outputs: names of its outputs.
    """

    path: Path
    session: onnxruntime.InferenceSession
    preparation: Preparation
    outputs: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Number of features, where the model has the output `features`."""
        (found,) = [output for output in self.session.get_outputs() if output.name == "features"]
        return int(found.shape[1])

    @property
    def side(self) -> int:
        """Side of the input in pixels."""
        return self.preparation.image_size[0]

    def run(self, images: UInt8[np.ndarray, "batch side side 3"], outputs: Sequence[str]) -> list[np.ndarray]:
        """Returns some outputs of the model for a batch, float32 [batch, ...], in the order in which they are named."""
        found: list[np.ndarray] = self.session.run(outputs, {"image": images})
        return found


def open_model(path: Path) -> OnnxModel:
    """Opens an .onnx file, or the one in a workdir.

    Raises:
      UserError: there is no such file, or it was not made by `python -m export`.
    """
    file = _find_file(path)
    options = onnxruntime.SessionOptions()
    # Pictures are independent: a thread for each batch keeps all cores busy without waiting for one another.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = open_session(file, options)
    try:
        preparation = read_preparation(session.get_modelmeta().custom_metadata_map)
        check_contract(session, classes=len(preparation.names), image_size=preparation.image_size)
    except UserError as error:
        raise not_exported(file, error) from None
    return OnnxModel(file, session, preparation, tuple(output.name for output in session.get_outputs()))


def _find_file(path: Path) -> Path:
    """Returns the .onnx file that a path stands for."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give a workdir or an .onnx file")
    if path.is_file():
        return path
    if (path / WORKDIR_FILE).exists():
        return path / WORKDIR_FILE
    if (path / "config.json").exists():
        raise UserError(f"{path} has no {WORKDIR_FILE} yet; write it with: python -m export {path}")
    raise UserError(f"{path} is neither a workdir nor an .onnx file; it has no {WORKDIR_FILE}")


def open_session(path: Path, options: onnxruntime.SessionOptions | None = None) -> onnxruntime.InferenceSession:
    """Opens a file with ONNX Runtime, which then prints nothing: errors arrive as exceptions.

    Raises:
      UserError: the file is not ONNX, or differs from the checksum in the description beside it.
    """
    _check_digest(path)
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        # The fallback would print a banner, then try the same again.
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        # Texts of a damaged file may not be UTF-8, which is noticed when they are read.
        session.get_modelmeta().custom_metadata_map  # noqa: B018
        for value in (*session.get_inputs(), *session.get_outputs()):
            value.name, value.shape  # noqa: B018
        return session
    # onnxruntime's exceptions share no base class.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is neither a workdir nor a readable .onnx file ({reason})") from error


def read_preparation(props: Mapping[str, str]) -> Preparation:
    """Reads the part of a file's metadata that predictions need. It is validated strictly: the file may be untrusted.

    Raises:
      UserError: a value is missing, not JSON, or not of its type.
    """
    try:
        values = {key: json.loads(props[key]) for key in ("names", "image_size", "resize") if key in props}
    except (ValueError, RecursionError) as error:
        raise UserError(f"its metadata are not JSON: {error}") from error
    preparation = decode(Preparation, values, "metadata")
    if len(set(preparation.image_size)) > 1:
        raise UserError(f"metadata.image_size is {list(preparation.image_size)}, but pictures are made square")
    return preparation


def check_contract(session: onnxruntime.InferenceSession, *, classes: int, image_size: tuple[int, int]) -> None:
    """Raises UserError if the input or the logits are of another type or shape than the metadata say."""
    # The first dimension is the batch.
    values = (*session.get_inputs(), *session.get_outputs())
    found = {value.name: (value.type, value.shape[1:]) for value in values}
    expected = {"image": ("tensor(uint8)", [*image_size, 3]), "logits": ("tensor(float)", [classes])}
    for name, kind in expected.items():
        if found.get(name) != kind:
            raise UserError(f"{name} is {found.get(name, 'absent')}, not {kind}")


def not_exported(path: Path, error: UserError) -> UserError:
    """Returns the error for a file that breaks the contract of `python -m export`."""
    return UserError(f"{path} was not made by `python -m export WORKDIR`: {error}")


def _check_digest(path: Path) -> None:
    """Raises UserError if the description beside a model, MODEL.json, has another SHA-256 of it."""
    try:
        described = json.loads(path.with_suffix(".json").read_bytes())
        expected = described["sha256"] if described["file"] == path.name else None
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return  # There is no description, or it is of something else.
    if expected is not None and found != expected:
        raise UserError(
            f"{path} is damaged, or was replaced: its SHA-256 differs from the one in {path.with_suffix('.json')}; "
            "export it again, or remove that file if the change is meant"
        )
