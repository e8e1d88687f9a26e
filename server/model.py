"""The model file: opened, checked against the contract, warmed up and run."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from server import files, integrity, memory, provider
from server.errors import StartError
from server.files import Signature
from server.resize import Resize

# How often a file is read if it changes while it is being read.
_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Model:
    """A classifier that is ready to run; safe to share between threads."""

    session: ort.InferenceSession
    """Runs one batch on all cores."""
    one_core: ort.InferenceSession | None = None
    """Runs a batch on one core, if `session` has more: several such runs side by side wait for nothing."""
    path: Path
    """The file."""
    name: str
    """What requests call it."""
    version: str
    """The version in the file's metadata; empty if it has none."""
    digest: str
    """SHA-256 of the file, in hexadecimal."""
    signature: Signature
    """Signature of the file when it was read."""
    names: tuple[str, ...]
    """Class names, in the order of the logits."""
    height: int
    """Height of the input in pixels."""
    width: int
    """Width of the input in pixels."""
    resize: Resize
    """How a picture becomes the input."""
    outputs: dict[str, tuple[int, ...]]
    """The float32 outputs, each with its shape for one picture."""

    @property
    def has_heatmap(self) -> bool:
        """Whether the model has the output `heatmap`: where it looked, float32 [batch, rows, columns] from 0 to 1."""
        return "heatmap" in self.outputs

    def run(
        self, images: npt.NDArray[np.uint8], outputs: Iterable[str], *, is_crowded: bool = False
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Classifies pictures.

        Args:
          images: uint8 [batch, height, width, 3], RGB.
          outputs: names of the outputs to compute, from `Model.outputs`.
          is_crowded: whether other work keeps the other cores busy.

        Returns:
          The outputs by name: float32 [batch, ...].
        """
        names = list(outputs)
        session = self.one_core if is_crowded and self.one_core else self.session
        return dict(zip(names, session.run(names, {"image": images}), strict=True))


def load(
    path: Path,
    *,
    max_batch: int,
    threads: int,
    name: str | None = None,
    sha256: str | None = None,
    execution_provider: str = provider.CPU,
) -> Model:
    """Opens a model file made by `python -m export`, and runs it once with every batch size.

    Args:
      path: the file.
      max_batch: largest batch size that the server will run.
      threads: cores that one run may use.
      name: what requests call the model; by default the file's name without its suffix.
      sha256: the checksum that the file must have, in hexadecimal; by default the one in the JSON file beside it, if
        that describes it.
      execution_provider: what onnxruntime computes with, a name in `provider.PROVIDERS`.

    Raises:
      StartError: the file is missing, not an ONNX model, damaged, breaks the contract, or fails to run.
    """
    _check_path(path)
    cores = (threads, 1) if threads > 1 and execution_provider == provider.CPU else (threads,)
    (session, *others), signature, digest = _read(path, cores, sha256, execution_provider)
    model = Model(
        session=session,
        one_core=others[0] if others else None,
        path=path,
        name=path.stem if name is None else name,
        digest=digest,
        signature=signature,
        **_read_declaration(path, session),
    )
    # Check what it computes.
    _warm_up(path, model, max_batch)
    _check_example(path, model, max_batch)
    memory.trim()
    return model


def _read_declaration(path: Path, session: ort.InferenceSession) -> dict[str, Any]:
    """Returns the fields of `Model` that a file declares, after comparing it with the contract and its checksum."""
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        _check_checksum(path, metadata)
        height, width = _check_input(path, session)
        names = _read_names(path, metadata)
        outputs = _check_outputs(path, session, len(names))
    except UnicodeDecodeError:
        raise _invalid(path, "it is damaged: its metadata or its names are not valid UTF-8") from None
    found = _read_metadata(path, metadata, "image_size")
    if found != [height, width]:
        raise _invalid(path, f"its metadata says image_size is {json.dumps(found)}, not {[height, width]}")
    return {
        "version": _read_version(path, metadata),
        "names": names,
        "height": height,
        "width": width,
        "resize": _read_resize(path, metadata, height=height, width=width),
        "outputs": outputs,
    }


def _check_path(path: Path) -> None:
    """Refuses a path that is not valid UTF-8, which neither onnxruntime nor a JSON response could hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise StartError(
            f"The model {path} cannot be served: its path is not valid UTF-8. Rename it, then set JAXCNN_MODEL to the"
            " new path."
        ) from None


def _read(
    path: Path, cores: Sequence[int], sha256: str | None, execution_provider: str
) -> tuple[list[ort.InferenceSession], Signature, str]:
    """Opens the file after checking its digest, once for each count of cores; returns its signature and digest as well.

    onnxruntime opens the file by its name. Opened from bytes in memory, it would certainly be the file of the digest,
    but onnxruntime keeps the bytes: the process takes 115 instead of 92 MB for a model of 23 MB.
    """
    for _ in range(_ATTEMPTS):
        before = _identify(path)
        _check_digest(path, before[1], sha256)
        sessions = [_open(path, count, execution_provider) for count in cores]
        if _identify(path) == before:
            return sessions, *before
    raise _invalid(path, "it changed while it was being read: write it elsewhere, then move it into place")


def _check_digest(path: Path, found: str, sha256: str | None) -> None:
    """Refuses a file that is not the one that JAXCNN_MODEL names, or that the JSON file beside it describes."""
    if sha256 is not None and found != sha256:
        raise StartError(
            f"The model {path} cannot be served: its sha256 is {found}, but JAXCNN_MODEL says {sha256}. Set it to the"
            " checksum of the file that you mean, or copy that file again."
        )
    description = integrity.read_description(path) if sha256 is None else None
    described = description.get("sha256") if description else None
    if isinstance(described, str) and described != found:
        beside = integrity.description_of(path).name
        raise StartError(
            f"The model {path} cannot be served: its sha256 is {found}, but {beside} beside it says {described}. Copy"
            f" both files again, or remove {beside} if it is older."
        )


def _identify(path: Path) -> tuple[Signature, str]:
    try:
        with files.open_file(path) as file:
            return files.signature(file), files.digest(file)
    except FileNotFoundError:
        raise StartError(
            f"The model {path} is not a file: set JAXCNN_MODEL to a file made by `python -m export WORKDIR`."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _open(path: Path, threads: int, execution_provider: str = provider.CPU) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # By default onnxruntime takes every core of the host, whatever share of them this process may use, and its threads
    # spin while they wait.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Errors arrive as exceptions, so onnxruntime need not log them.
    options.log_severity_level = 4
    try:
        # The fallback would be the CPU after a banner on standard output, or the CPU again.
        providers = provider.arguments(execution_provider, threads)
        session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:
        # onnxruntime's exceptions share no base class.
        raise _invalid(path, f"onnxruntime cannot open it ({_one_line(error)})") from error
    provider.check_used(execution_provider, session.get_providers())
    return session


def _check_input(path: Path, session: ort.InferenceSession) -> tuple[int, int]:
    """Returns the height and width that the model takes."""
    inputs = {node.name: (node.type, node.shape) for node in session.get_inputs()}
    kind, shape = inputs.get("image", ("", []))
    fits = len(inputs) == 1 and kind == "tensor(uint8)" and len(shape) == 4 and shape[3] == 3
    if not fits or not all(isinstance(side, int) and side > 0 for side in shape[1:3]):
        raise _invalid(path, f"its inputs are {inputs}, not one `image` of uint8 [batch, height, width, 3]")
    return shape[1], shape[2]


def _check_outputs(path: Path, session: ort.InferenceSession, classes: int) -> dict[str, tuple[int, ...]]:
    """Returns the float32 outputs [batch, ...]: the two of the contract, and whatever else the model has."""
    found = {node.name: (node.type, node.shape) for node in session.get_outputs()}
    # The contract's outputs.
    missing = {"logits", "probabilities"} - set(found)
    if missing:
        raise _invalid(path, f"it has no output named {' or '.join(sorted(missing))}")
    outputs: dict[str, tuple[int, ...]] = dict.fromkeys(("logits", "probabilities"), (classes,))
    # Further outputs of fixed shape.
    for name, (kind, shape) in found.items():
        is_array = kind == "tensor(float)" and len(shape) > 0 and all(isinstance(side, int) for side in shape[1:])
        if name not in outputs and is_array:
            outputs[name] = tuple(shape[1:])
    # The demo page and /predict rely on a heat map of two dimensions.
    if "heatmap" in found and len(outputs.get("heatmap", ())) != 2:
        kind, shape = found["heatmap"]
        raise _invalid(path, f"its heatmap is {kind} {shape}, not float32 [batch, rows, columns]")
    return outputs


def _read_metadata(path: Path, metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except KeyError:
        raise _invalid(path, f"its metadata has no {key}") from None
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"its metadata has a {key} that is not JSON ({_one_line(error)})") from None


def _read_names(path: Path, metadata: dict[str, str]) -> tuple[str, ...]:
    names = _read_metadata(path, metadata, "names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise _invalid(path, "its metadata has names that are not a list of strings")
    _check_unicode(path, "names", "".join(names))
    return tuple(names)


def _read_resize(path: Path, metadata: dict[str, str], *, height: int, width: int) -> Resize:
    value = _read_metadata(path, metadata, "resize")
    try:
        return Resize.parse(value, height=height, width=width)
    except ValueError as error:
        raise _invalid(path, f"its metadata says resize is {_shorten(json.dumps(value))}, {error}") from None


def _read_version(path: Path, metadata: dict[str, str]) -> str:
    version = str(_read_metadata(path, metadata, "version")) if "version" in metadata else ""
    _check_unicode(path, "version", version)
    return version


def _check_unicode(path: Path, key: str, text: str) -> None:
    """Refuses lone surrogates, which JSON can escape but no response could encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(path, f"its metadata has a text in {key} that is not valid Unicode") from None


def _warm_up(path: Path, model: Model, max_batch: int) -> None:
    """Runs the model on black pictures, so that requests find it warm, and checks what it computes.

    At least two batch sizes are run, which reveals a model that takes only one.
    """
    for count in range(max(2, max_batch), 0, -1):
        found = _run_on_black(path, model, count)
        for name, shape in model.outputs.items():
            array, expected = found[name], (count, *shape)
            if array.dtype != np.float32 or array.shape != expected:
                raise _invalid(
                    path,
                    f"it has {len(model.names)} class names, but for {count} pictures {name} is {array.dtype}"
                    f" {list(array.shape)}, not float32 {list(expected)}",
                )
            if not np.isfinite(array).all():
                raise _invalid(path, f"its {name} for black pictures are not finite")
    if model.one_core:
        # Its largest batch takes the memory for all sizes; what it computes is the same.
        _run_on_black(path, model, max_batch, is_crowded=True)


def _run_on_black(
    path: Path, model: Model, count: int, *, is_crowded: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    try:
        black = np.zeros((count, model.height, model.width, 3), np.uint8)
        return model.run(black, model.outputs, is_crowded=is_crowded)
    except Exception as error:
        raise _invalid(path, f"it fails on a batch of {count} black pictures ({_one_line(error)})") from error


def _check_checksum(path: Path, metadata: dict[str, str]) -> None:
    """Refuses a file that differs from the checksum in its metadata; files of earlier versions have none."""
    try:
        is_whole = integrity.KEY not in metadata or integrity.has_checksum(path, metadata[integrity.KEY])
    except OSError as error:
        raise _unreadable(path, error) from error
    if not is_whole:
        raise _invalid(
            path, f"it is damaged, or was edited: it differs from the {integrity.KEY} at its end. Copy the file again"
        )


def _check_example(path: Path, model: Model, max_batch: int) -> None:
    """Refuses a model that does not compute what the example beside it says, if that belongs to this file."""
    description = integrity.read_description(path)
    if description is None or description.get("sha256") != model.digest:
        return
    name = integrity.example_of(path)
    is_int8 = "quantization" in model.session.get_modelmeta().custom_metadata_map
    try:
        example = integrity.read_example(path, max_batch)
        if example is None:
            return
        differs = integrity.find_difference(example, lambda images: model.run(images, model.outputs), is_int8=is_int8)
    except Exception as error:
        raise _invalid(path, f"its example {name} cannot be used ({_one_line(error)}). Copy or remove it") from error
    if differs is not None:
        raise _invalid(path, f"its {differs} for the pictures in {name} are not those in that file. Copy both again")


def _unreadable(path: Path, error: OSError) -> StartError:
    return StartError(
        f"The model {path} cannot be served: it cannot be read ({error.strerror}). Set JAXCNN_MODEL to a file that the"
        " server's user may read, in folders that it may enter."
    )


def _invalid(path: Path, reason: str) -> StartError:
    # Names in the file could control the terminal.
    reason = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in reason)
    return StartError(f"The model {path} cannot be served: {reason}. Make it with `python -m export WORKDIR`.")


def _one_line(error: Exception) -> str:
    return _shorten(" ".join(str(error).split()))


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
