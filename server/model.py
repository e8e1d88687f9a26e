"""The model file: opened, checked against the contract, tried out, run."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from server import memory
from server.errors import StartError

# The one way `server.picture` makes a picture into the input.
_RESIZE = {"mode": "stretch", "filter": "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A classifier that is ready to run; safe to share between threads."""

    session: ort.InferenceSession
    name: str
    """The file's name without its ending."""
    version: str
    """As the file's metadata gives it; empty where it gives none."""
    digest: str
    """SHA-256 of the file, in hexadecimal."""
    names: tuple[str, ...]
    height: int
    width: int
    outputs: dict[str, tuple[int, ...]]
    """Its outputs and the shape that each has for one picture; all are float32."""

    @property
    def has_heatmap(self) -> bool:
        """Whether it tells where it looked: `heatmap`, rows of numbers from 0 to 1."""
        return "heatmap" in self.outputs

    def run(self, images: npt.NDArray[np.uint8], outputs: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Classifies pictures.

        Args:
            images: uint8 [batch, height, width, 3], RGB.
            outputs: which to compute; see `outputs`.

        Returns:
            Each by its name: float32 [batch, ...].
        """
        names = list(outputs)
        return dict(zip(names, self.session.run(names, {"image": images}), strict=True))


def load(path: Path, *, max_batch: int, threads: int) -> Model:
    """Opens a model file made by `python -m export` and runs it once with every number of pictures.

    Args:
        path: the file.
        max_batch: most pictures that it will be run on at once.
        threads: cores that one run may use.

    Raises:
        StartError: the file is missing, is no ONNX model, does not keep the contract, or does not run.
    """
    session = _open(path, threads)
    metadata = session.get_modelmeta().custom_metadata_map
    height, width = _check_input(path, session)
    for key, expected in (("image_size", [height, width]), ("resize", _RESIZE)):
        found = _metadata(path, metadata, key)
        if found != expected:
            raise _wrong(path, f"its metadata says {key} is {json.dumps(found)}, not {json.dumps(expected)}")
    names = _names(path, metadata)
    model = Model(
        session=session,
        name=path.stem,
        version=str(_metadata(path, metadata, "version")) if "version" in metadata else "",
        digest=_digest(path),
        names=names,
        height=height,
        width=width,
        outputs=_check_outputs(path, session, len(names)),
    )
    _try_out(path, model, max_batch)
    memory.trim()
    return model


def _open(path: Path, threads: int) -> ort.InferenceSession:
    if not path.is_file():
        raise StartError(
            f"The model {path} is not a file: set JAXCNN_MODEL to a file made by `python -m export WORKDIR`."
        )
    options = ort.SessionOptions()
    # A lone picture gets all cores (3.9 instead of 6.9 ms on two); many runs side by side lose a few percent at most.
    # Left alone, onnxruntime takes every core of the host, whatever share of them this process may use, and its
    # threads spin while they wait.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # Errors arrive as exceptions.
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class.
        raise _wrong(path, f"onnxruntime cannot open it ({_one_line(error)})") from error


def _check_input(path: Path, session: ort.InferenceSession) -> tuple[int, int]:
    """Returns the height and width that the model takes."""
    inputs = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    kind, shape = inputs.get("image", ("", []))
    fits = len(inputs) == 1 and kind == "tensor(uint8)" and len(shape) == 4 and shape[3] == 3
    if not fits or not all(isinstance(side, int) and side > 0 for side in shape[1:3]):
        raise _wrong(path, f"its inputs are {inputs}, not one `image` of uint8 [batch, height, width, 3]")
    return shape[1], shape[2]


def _check_outputs(path: Path, session: ort.InferenceSession, classes: int) -> dict[str, tuple[int, ...]]:
    """Returns the outputs of float32 [batch, ...], of which there may be more than the two that there must be."""
    found = {each.name: (each.type, each.shape) for each in session.get_outputs()}
    missing = {"logits", "probabilities"} - set(found)
    if missing:
        raise _wrong(path, f"it has no output named {' or '.join(sorted(missing))}")
    outputs: dict[str, tuple[int, ...]] = dict.fromkeys(("logits", "probabilities"), (classes,))
    for name, (kind, shape) in found.items():
        is_array = kind == "tensor(float)" and len(shape) > 0 and all(isinstance(side, int) for side in shape[1:])
        if name not in outputs and is_array:
            outputs[name] = tuple(shape[1:])
    if "heatmap" in found and len(outputs.get("heatmap", ())) != 2:
        kind, shape = found["heatmap"]
        raise _wrong(path, f"its heatmap is {kind} {shape}, not float32 [batch, rows, columns]")
    return outputs


def _metadata(path: Path, metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except KeyError:
        raise _wrong(path, f"its metadata has no {key}") from None
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"its metadata has a {key} that is not JSON ({_one_line(error)})") from None


def _names(path: Path, metadata: dict[str, str]) -> tuple[str, ...]:
    names = _metadata(path, metadata, "names")
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise _wrong(path, "its metadata has names that are not a list of strings")
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise _wrong(path, "its metadata has names that are not valid Unicode") from None
    return tuple(names)


def _try_out(path: Path, model: Model, max_batch: int) -> None:
    """Runs black pictures: requests find the session warm, and a fixed batch is found out."""
    black = np.zeros((max(2, max_batch), model.height, model.width, 3), np.uint8)
    for count in range(len(black), 0, -1):
        try:
            found = model.run(black[:count], model.outputs)
        except Exception as error:
            raise _wrong(path, f"it fails on a batch of {count} black pictures ({_one_line(error)})") from error
        for name, shape in model.outputs.items():
            array, expected = found[name], (count, *shape)
            if array.dtype != np.float32 or array.shape != expected:
                raise _wrong(
                    path,
                    f"it has {len(model.names)} names, but gives {count} pictures {name} of {array.dtype}"
                    f" {list(array.shape)}, not float32 {list(expected)}",
                )
            if not np.isfinite(array).all():
                raise _wrong(path, f"it computes {name} that are not finite from black pictures")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong(path: Path, what: str) -> StartError:
    return StartError(f"The model {path} cannot be served: {what}. Make it with `python -m export WORKDIR`.")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
