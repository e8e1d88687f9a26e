"""The files beside an exported model: for runtimes that hide metadata, for the Hugging Face Hub, for a first test."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from export import seal
from jaxcnn.metadata import Metadata

_MODEL_TYPE = "jaxcnn"
_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers of the filters, which Hugging Face uses too."""


def folder_of(model: Path) -> Path:
    """Returns the folder beside a model that has its name without the suffix, for the files that have fixed names."""
    return model.with_suffix("")


def make_sidecars(
    path: Path, metadata: Metadata, *, card: str, pictures: np.ndarray, real: bool = True
) -> dict[str, bytes]:
    """Makes the files that go beside a model: MODEL.json, and a folder MODEL/ with the others.

    MODEL.json describes the model for runtimes that hide its metadata. MODEL/README.md is the model card;
    MODEL/config.json and MODEL/preprocessor_config.json have classes and preprocessing under Hugging Face's names;
    MODEL/example.npz has pictures and the outputs for them, by the names of input and outputs.

    Args:
      path: the model.
      metadata: its metadata.
      card: its model card.
      pictures: uint8 [n, height, width, 3], for the example.
      real: whether the pictures are real, or noise; recorded in MODEL.json.

    Returns:
      The content of each file by its path beside the model. Write them in this order, MODEL.json after the model:
      `foreign_path` recognises the folder by its config.json, and MODEL.json must refer to files that exist.
    """
    # The example: its outputs are the outputs of the file itself.
    name = folder_of(path).name
    arrays = io.BytesIO()
    np.savez_compressed(arrays, image=pictures, **open_model(path)(pictures))  # type: ignore[arg-type]
    example = {"example": f"{name}/example.npz", "example_pictures": "real" if real else "noise"}
    return {
        f"{name}/config.json": _json(hub_config(metadata)),
        f"{name}/preprocessor_config.json": _json(hub_preprocessor(metadata)),
        f"{name}/README.md": card.encode(),
        f"{name}/example.npz": arrays.getvalue(),
        f"{name}.json": _json(describe(path) | example | metadata.to_values()),
    }


def foreign_path(model: Path) -> Path | None:
    """Returns a path that has the name of a sidecar but was not written as one; None if all may be replaced.

    An interrupted export leaves hidden files if it was killed, empty ones if the power failed; they may be replaced.
    """
    # MODEL.json has an operator set if it describes a model.
    folder, description = folder_of(model), model.with_suffix(".json")
    if description.exists() and not _is_empty(description) and _read_value(description, "opset") is None:
        return description
    # MODEL/ has a config.json of this library's kind.
    if not folder.is_dir():
        return folder if folder.exists() else None
    config = folder / "config.json"
    is_interrupted = all(path.name.startswith(".") for path in folder.iterdir()) or _is_empty(config)
    return None if is_interrupted or _read_value(config, "model_type") == _MODEL_TYPE else folder


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _read_value(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_bytes())[key]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def read_pictures(path: Path, side: int) -> np.ndarray | None:
    """Returns the real pictures in the example of an earlier export, or None if there are none of this size."""
    try:
        if json.loads(path.with_suffix(".json").read_bytes())["example_pictures"] != "real":
            return None
        with (folder_of(path) / "example.npz").open("rb") as file, np.load(file) as arrays:
            pictures = np.asarray(arrays["image"])
    # A damaged zip raises errors of many kinds, which share no base class: of zlib, zipfile, NumPy and Python.
    except Exception:
        return None
    fits = pictures.ndim == 4 and pictures.shape[1:] == (side, side, 3) and pictures.dtype == np.uint8
    return pictures if fits and len(pictures) else None


def describe(path: Path) -> dict[str, Any]:
    """Returns name, size, checksums and versions of a model, and name, type and shape of its inputs and outputs."""
    content = path.read_bytes()
    model = onnx.load_from_string(content)
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **{prop.key: json.loads(prop.value) for prop in model.metadata_props if prop.key == seal.KEY},
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "inputs": [_describe_value(value) for value in model.graph.input],
        "outputs": [_describe_value(value) for value in model.graph.output],
    }


def hub_config(metadata: Metadata) -> dict[str, Any]:
    """Returns Hugging Face's `config.json`: classes and input size."""
    names = dict(enumerate(metadata.names))
    return {
        "architectures": [metadata.config.model.name],
        "model_type": _MODEL_TYPE,
        "id2label": {str(i): name for i, name in names.items()},
        "label2id": {name: i for i, name in names.items()},
        "num_labels": len(names),
        "image_size": metadata.image_size[0],
        "num_channels": 3,
        "problem_type": "single_label_classification",
        "torch_dtype": "float32",
    }


def hub_preprocessor(metadata: Metadata) -> dict[str, Any]:
    """Returns Hugging Face's `preprocessor_config.json`: it only resizes, as the model itself normalises."""
    height, width = metadata.image_size
    size: dict[str, int] = {"height": height, "width": width}
    more: dict[str, Any] = {}
    if metadata.resize.mode == "crop":
        size, more = {"shortest_edge": metadata.resize.stored(width)}, {"crop_size": size}
    elif metadata.resize.mode == "pad":
        size, more = {"longest_edge": width}, {"do_pad": True, "pad_size": size}
    return {
        "image_processor_type": "ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": _RESAMPLE[metadata.resize.filter],
        "do_center_crop": metadata.resize.mode == "crop",
        **more,
        "do_rescale": False,
        "do_normalize": False,
        "input_data_format": "channels_last",
        "data_format": "channels_last",
    }


def open_model(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function from uint8 pictures [n, height, width, 3] to the outputs of a model by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Python's error for a file that cannot be read says why, onnxruntime's does not.
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pictures: dict(zip(names, session.run(names, {"image": pictures}), strict=True))


def _describe_value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    return {
        "name": value.name,
        "type": helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        "shape": [dim.dim_param or dim.dim_value for dim in kind.shape.dim],
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
