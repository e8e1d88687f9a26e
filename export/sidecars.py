"""The files beside an exported one: for runtimes that hide metadata, for the Hugging Face Hub, for a first test."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

_MODEL_TYPE = "jaxcnn"
_BICUBIC = 3  # Pillow's number, which Hugging Face uses


def folder_of(model: Path) -> Path:
    """Where the files that have fixed names go: the folder beside a model that is named like it."""
    return model.with_suffix("")


def make_sidecars(
    path: Path, metadata: Mapping[str, Any], *, card: str, pictures: np.ndarray, real: bool = True
) -> dict[str, bytes]:
    """The files that go beside a model, by their paths there: MODEL.json, and what else goes into the folder MODEL/.

    MODEL/README.md is the model card, MODEL/config.json and MODEL/preprocessor_config.json tell classes and
    preparation by Hugging Face's names for them, MODEL/example.npz holds pictures and what the model says of them, by
    name of input and output. Whether those pictures are real or noise is told in MODEL.json.

    They are to be put there in this order: `foreign_path` knows the folder by its config.json, and MODEL.json must
    not tell of an example that is not there yet.
    """
    name = folder_of(path).name
    arrays = io.BytesIO()
    np.savez_compressed(arrays, image=pictures, **open_model(path)(pictures))  # type: ignore[arg-type]
    example = {"example": f"{name}/example.npz", "example_pictures": "real" if real else "noise"}
    return {
        f"{name}/config.json": _json(hub_config(metadata)),
        f"{name}/preprocessor_config.json": _json(hub_preprocessor(metadata)),
        f"{name}/README.md": card.encode(),
        f"{name}/example.npz": arrays.getvalue(),
        f"{name}.json": _json(describe(path) | example | dict(metadata)),
    }


def foreign_path(model: Path) -> Path | None:
    """What is there under the name of a sidecar but was not written as one; None if all may be replaced.

    What an export leaves that was cut short is its own: hidden files if it was killed, empty ones if the power failed.
    """
    folder, description = folder_of(model), model.with_suffix(".json")
    if description.exists() and not _is_empty(description) and _read_value(description, "opset") is None:
        return description
    if not folder.is_dir():
        return folder if folder.exists() else None
    config = folder / "config.json"
    ours = all(each.name.startswith(".") for each in folder.iterdir()) or _is_empty(config)
    return None if ours or _read_value(config, "model_type") == _MODEL_TYPE else folder


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


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
