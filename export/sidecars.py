"""The files beside an exported one: for runtimes that hide metadata, for the Hugging Face Hub, for a first test."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

_MODEL_TYPE = "jaxcnn"
_BICUBIC = 3  # Pillow's number, which Hugging Face uses


def folder_of(model: Path) -> Path:
    """Where the files that have fixed names go: the folder beside a model that is named like it."""
    return model.with_suffix("")


def write_sidecars(
    path: Path, metadata: Mapping[str, Any], *, card: str, pictures: np.ndarray, real: bool = True
) -> None:
    """Writes MODEL.json beside a model, and into the folder MODEL/ what else goes with it.

    MODEL/README.md is the model card, MODEL/config.json and MODEL/preprocessor_config.json tell classes and
    preparation by Hugging Face's names for them, MODEL/example.npz holds pictures and what the model says of them, by
    name of input and output. Whether those pictures are real or noise is told in MODEL.json.
    """
    folder = folder_of(path)
    folder.mkdir(exist_ok=True)
    example = {"example": f"{folder.name}/example.npz", "example_pictures": "real" if real else "noise"}
    _write(path.with_suffix(".json"), _json(describe(path) | example | dict(metadata)))
    _write(folder / "config.json", _json(hub_config(metadata)))
    _write(folder / "preprocessor_config.json", _json(hub_preprocessor(metadata)))
    _write(folder / "README.md", card.encode())
    with _written(folder / "example.npz") as file:
        np.savez_compressed(file, image=pictures, **open_model(path)(pictures))  # type: ignore[arg-type]


def foreign_path(model: Path) -> Path | None:
    """What is there under the name of a sidecar but was not written as one; None if all may be replaced."""
    folder, description = folder_of(model), model.with_suffix(".json")
    if description.exists() and _read_value(description, "opset") is None:
        return description
    if not folder.is_dir():
        return folder if folder.exists() else None
    ours = not any(folder.iterdir()) or _read_value(folder / "config.json", "model_type") == _MODEL_TYPE
    return None if ours else folder


def _read_value(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_pictures(path: Path, side: int) -> np.ndarray | None:
    """The real pictures of the example that was written with this model earlier, if there are some of this size."""
    try:
        if json.loads(path.with_suffix(".json").read_bytes())["example_pictures"] != "real":
            return None
        with (folder_of(path) / "example.npz").open("rb") as file, np.load(file) as arrays:
            pictures = np.asarray(arrays["image"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    fits = pictures.ndim == 4 and pictures.shape[1:] == (side, side, 3) and pictures.dtype == np.uint8
    return pictures if fits and len(pictures) else None


def describe(path: Path) -> dict[str, Any]:
    """What the file is: size, checksum, versions, and name, type and shape of its inputs and outputs."""
    content = path.read_bytes()
    model = onnx.load_from_string(content)
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "inputs": [_value(each) for each in model.graph.input],
        "outputs": [_value(each) for each in model.graph.output],
    }


def hub_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's `config.json`."""
    names = dict(enumerate(metadata["names"]))
    return {
        "architectures": [metadata["config"]["model"]["name"]],
        "model_type": _MODEL_TYPE,
        "id2label": {str(i): name for i, name in names.items()},
        "label2id": {name: i for i, name in names.items()},
        "num_labels": len(names),
        "image_size": metadata["image_size"][0],
        "num_channels": 3,
        "problem_type": "single_label_classification",
        "torch_dtype": "float32",
    }


def hub_preprocessor(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's `preprocessor_config.json`: the model scales and normalises by itself, and wants bytes."""
    height, width = metadata["image_size"]
    return {
        "image_processor_type": "ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _BICUBIC,
        "do_center_crop": False,
        "do_rescale": False,
        "do_normalize": False,
        "input_data_format": "channels_last",
        "data_format": "channels_last",
    }


def open_model(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A model as a function from pictures to its outputs by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda pictures: dict(zip(names, session.run(names, {"image": pictures}), strict=True))


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    return {
        "name": value.name,
        "type": helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        "shape": [dim.dim_param or dim.dim_value for dim in kind.shape.dim],
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with _written(path) as file:
        file.write(content)


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to; in the end it is there whole, or as it was before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
