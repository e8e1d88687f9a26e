"""A training run's folder as an ONNX file: the only part of `export` that knows jaxcnn."""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from jaxtyping import Array, UInt8

from export.converter import InputSpec, to_onnx
from export.verify import verify
from jaxcnn import models
from jaxcnn.checkpoint import TrainedModel, load_model
from jaxcnn.config import Config, DataConfig
from jaxcnn.errors import UserError
from jaxcnn.workdir import Workdir

_INPUT = "image"


def export_workdir(
    workdir: Path, output: Path | None = None, *, pictures: UInt8[np.ndarray, "n height width 3"] | None = None
) -> Path:
    """Writes the best checkpoint of a run as a verified ONNX file.

    Input `image`: uint8 RGB [batch, height, width, 3]. Outputs `logits` and `probabilities`: float32
    [batch, classes]. Class names and how to prepare pictures are in the metadata, each value in JSON.

    Args:
      workdir: the run's folder.
      output: the file; by default `model.onnx` in the folder. It appears, or is replaced, only once verified.
      pictures: real ones to verify with, besides random ones.

    Returns:
      The path of the file.

    Raises:
      UserError: not a run's folder, no checkpoint in it, or the file cannot be written.
      UnsupportedError: the model does something that cannot be exported.
      VerificationError: the file does not compute what the model does.
    """
    target = Workdir(workdir).onnx if output is None else output
    trained = load_model(workdir)
    side = trained.config.data.image_size
    inputs: dict[str, InputSpec] = {_INPUT: ("uint8", ("batch", side, side, 3))}
    classify = _classifier(trained)
    model = to_onnx(classify, inputs)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata(trained).items()})
    samples = None if pictures is None else {_INPUT: pictures}
    _write_verified(model, target, lambda path: verify(path, classify, inputs, samples=samples))
    return target


def metadata(trained: TrainedModel) -> dict[str, Any]:
    """What the file says about itself; see ARCHITECTURE for who reads it."""
    side, classes = trained.config.data.image_size, len(trained.names)
    return {
        "names": list(trained.names),
        "wnids": list(trained.wnids),
        "image_size": [side, side],
        "resize": {"mode": "stretch", "filter": "bicubic"},
        "dataset": trained.dataset,
        "metrics": trained.metrics,
        "config": dataclasses.asdict(_portable(trained.config)),
        "license": trained.license,
        "author": "jaxcnn",
        "version": _version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "description": f"{trained.config.model.name} classifier of {classes} classes, trained on {trained.dataset}",
    }


def _portable(config: Config) -> Config:
    """The settings without the places where this machine keeps archives and caches."""
    here = DataConfig()
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, archive=here.archive, cache_dir=here.cache_dir)
    )


def _classifier(trained: TrainedModel) -> Callable[[Array], dict[str, Array]]:
    """The model in float32, whatever it was trained in: parameters always are, and few runtimes know bfloat16."""
    config = dataclasses.replace(trained.config.model, precision="float32")
    model = models.build(config, classes=len(trained.names))

    def classify(image: Array) -> dict[str, Array]:
        logits: Any = model.apply(trained.variables, image, train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    return classify


def _write_verified(model: onnx.ModelProto, target: Path, check: Callable[[Path], object]) -> None:
    """Writes beside the target, checks that file, then moves it there; on failure nothing has changed."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(model.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}; give another path with -o") from error
    finally:
        temporary.unlink(missing_ok=True)


def _version() -> str:
    try:
        return importlib.metadata.version("jaxcnn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a checkout
