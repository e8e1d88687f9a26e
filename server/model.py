"""The model file: opened, checked against the contract, tried out, run."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from server import files, memory
from server.errors import StartError
from server.files import Signature

# The one way `server.picture` makes a picture into the input.
_RESIZE = {"mode": "stretch", "filter": "bicubic"}

# A file that is written while it is read is read anew, this often at most.
_ATTEMPTS = 3


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
    signature: Signature
    """Of the file when it was read."""
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
    _check_path(path)
    session, signature, digest = _read(path, threads)
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        height, width = _check_input(path, session)
        names = _names(path, metadata)
        outputs = _check_outputs(path, session, len(names))
    except UnicodeDecodeError:
        raise _wrong(path, "it is damaged: its metadata or its names are not valid UTF-8") from None
    for key, expected in (("image_size", [height, width]), ("resize", _RESIZE)):
        found = _metadata(path, metadata, key)
        if found != expected:
            raise _wrong(path, f"its metadata says {key} is {json.dumps(found)}, not {json.dumps(expected)}")
    model = Model(
        session=session,
        name=path.stem,
        version=_version(path, metadata),
        digest=digest,
        signature=signature,
        names=names,
        height=height,
        width=width,
        outputs=outputs,
    )
    _try_out(path, model, max_batch)
    memory.trim()
    return model


def _check_path(path: Path) -> None:
    """Neither onnxruntime nor an answer takes a name that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise StartError(
            f"The model {path} cannot be served: its path is not valid UTF-8. Rename it, and set JAXCNN_MODEL anew."
        ) from None


def _read(path: Path, threads: int) -> tuple[ort.InferenceSession, Signature, str]:
    """Opens the file, and tells which it was by its signature and digest.

    onnxruntime opens it by its name. From bytes in memory it would be sure to be the file of the digest, but these
    onnxruntime keeps: the process then has 115 instead of 92 MB with a model of 23.
    """
    for _ in range(_ATTEMPTS):
        before = _identify(path)
        session = _open(path, threads)
        if _identify(path) == before:
            return session, *before
    raise _wrong(path, "it changes while it is read: write it elsewhere, then move it there")


def _identify(path: Path) -> tuple[Signature, str]:
    try:
        with files.open_file(path) as file:
            return files.signature(file), files.digest(file)
    except FileNotFoundError:
        raise StartError(
            f"The model {path} is not a file: set JAXCNN_MODEL to a file made by `python -m export WORKDIR`."
        ) from None
    except OSError as error:
        raise StartError(
            f"The model {path} cannot be served: it cannot be read ({error.strerror}). Set JAXCNN_MODEL to a file that"
            " the server's user may read, in folders that it may enter."
        ) from error


def _open(path: Path, threads: int) -> ort.InferenceSession:
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
        # Its fallback is the same provider again, after a banner on the standard output.
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
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
    _check_unicode(path, "names", "".join(names))
    return tuple(names)


def _version(path: Path, metadata: dict[str, str]) -> str:
    version = str(_metadata(path, metadata, "version")) if "version" in metadata else ""
    _check_unicode(path, "version", version)
    return version


def _check_unicode(path: Path, key: str, text: str) -> None:
    """JSON may escape what no answer could be encoded with."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong(path, f"its metadata has a text in {key} that is not valid Unicode") from None


def _try_out(path: Path, model: Model, max_batch: int) -> None:
    """Runs black pictures: requests find the session warm, and a fixed batch is found out."""
    for count in range(max(2, max_batch), 0, -1):
        try:
            black = np.zeros((count, model.height, model.width, 3), np.uint8)
            found = model.run(black, model.outputs)
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


def _wrong(path: Path, what: str) -> StartError:
    return StartError(f"The model {path} cannot be served: {what}. Make it with `python -m export WORKDIR`.")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
