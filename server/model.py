"""The model file: opened, checked against the contract, tried out, run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from server.errors import StartError

# The one way `server.picture` makes a picture into the input.
_RESIZE = {"mode": "stretch", "filter": "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A classifier that is ready to run; safe to share between threads."""

    session: ort.InferenceSession
    names: tuple[str, ...]
    height: int
    width: int

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Classifies pictures.

        Args:
            images: uint8 [batch, height, width, 3], RGB.

        Returns:
            float32 [batch, classes].

        Raises:
            FloatingPointError: the model computed NaN or infinity.
        """
        (probabilities,) = self.session.run(["probabilities"], {"image": images})
        if not np.isfinite(probabilities).all():
            raise FloatingPointError("the model computed probabilities that are not finite")
        result: npt.NDArray[np.float32] = probabilities
        return result


def load(path: Path) -> Model:
    """Opens a model file made by `python -m export` and tries it out.

    Raises:
        StartError: the file is missing, is no ONNX model, does not keep the contract, or does not run.
    """
    session = _open(path)
    metadata = session.get_modelmeta().custom_metadata_map
    height, width = _check_input(path, session)
    for key, expected in (("image_size", [height, width]), ("resize", _RESIZE)):
        found = _metadata(path, metadata, key)
        if found != expected:
            raise _wrong(path, f"its metadata says {key} is {json.dumps(found)}, not {json.dumps(expected)}")
    model = Model(session=session, names=_names(path, metadata), height=height, width=width)
    _try_out(path, model)
    return model


def _open(path: Path) -> ort.InferenceSession:
    if not path.is_file():
        raise StartError(
            f"The model {path} is not a file: set JAXCNN_MODEL to a file made by `python -m export WORKDIR`."
        )
    options = ort.SessionOptions()
    # One core for each request; requests run side by side. Left alone, onnxruntime takes every core of the host,
    # whatever share of them this process may use, and its threads spin while they wait.
    options.intra_op_num_threads = 1
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
    missing = {"logits", "probabilities"} - {each.name for each in session.get_outputs()}
    if missing:
        raise _wrong(path, f"it has no output named {' or '.join(sorted(missing))}")
    return shape[1], shape[2]


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


def _try_out(path: Path, model: Model) -> None:
    """Runs two pictures, so that the first request finds the session warm and a fixed batch of one is found out."""
    try:
        probabilities = model.probabilities(np.zeros((2, model.height, model.width, 3), np.uint8))
    except Exception as error:
        raise _wrong(path, f"it fails on a batch of two black pictures ({_one_line(error)})") from error
    expected = (2, len(model.names))
    if probabilities.dtype != np.float32 or probabilities.shape != expected:
        found = f"{probabilities.dtype} {list(probabilities.shape)}"
        raise _wrong(path, f"it has {len(model.names)} names, but gives two pictures probabilities of {found}")


def _wrong(path: Path, what: str) -> StartError:
    return StartError(f"The model {path} cannot be served: {what}. Make it with `python -m export WORKDIR`.")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
