"""A trained model that computes logits, from a workdir or from the ONNX file made of it."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8

from jaxcnn.config import Config
from jaxcnn.data import Fingerprint
from jaxcnn.errors import UserError
from jaxcnn.metadata import Metadata
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.workdir import Workdir
from jaxcnn.step import eval_step

LogitsFunction = Callable[
    [UInt8[np.ndarray, "batch side side 3"]],
    Float32[np.ndarray, "batch classes"] | Float32[jax.Array, "batch classes"],
]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained model from a workdir or an ONNX file.

    Attributes:
      path: the workdir or the file.
      config: the settings it was trained with; those of a workdir's data are valid in any working directory.
      names: of its classes.
      wnids: WordNet ids of its classes; empty where its data had none.
      step: training steps taken; None in a file that does not tell.
      pictures: fingerprint of the split it was trained on; None in a file that does not record it.
      temperature: what its logits have been divided by; 1 if they are not calibrated.
      logits: computes the logits of a batch of pictures.
    """

    path: Path
    config: Config
    names: tuple[str, ...]
    wnids: tuple[str, ...]
    step: int | None
    pictures: Fingerprint | None
    temperature: float
    logits: LogitsFunction


def load(path: str | os.PathLike[str]) -> Classifier:
    """Opens the best checkpoint of a workdir, or an ONNX file that `python -m export` made.

    Raises:
      UserError: the path is missing or neither of the two.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a workdir or an .onnx file")
    if path.is_file():
        return open_onnx(path)
    trained, run = load_model(path), Workdir(path)
    logits = partial(eval_step, trained.variables, model=trained.model)
    return Classifier(
        path=path,
        config=dataclasses.replace(trained.config, data=run.read_data_config()),
        names=trained.names,
        wnids=trained.wnids,
        step=trained.step,
        pictures=run.read_pictures(),
        temperature=trained.temperature,
        logits=lambda images: logits(images) / trained.temperature,
    )


def open_onnx(path: Path) -> Classifier:
    """Opens an exported model with onnxruntime.

    Raises:
      UserError: not an ONNX file, or not one that keeps the contract of `python -m export`.
    """
    try:
        session = onnxruntime.InferenceSession(path, _quiet(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is neither a workdir nor a readable .onnx file ({reason})") from error
    metadata = Metadata(path, session.get_modelmeta().custom_metadata_map, "python -m export WORKDIR")
    config, names = metadata.config(), metadata.texts("names")
    side = config.data.image_size
    if metadata.read("image_size", list) != [side, side]:
        raise metadata.refusal(f"its image_size differs from the {side} of its settings")
    shapes = {each.name: (each.type, each.shape[1:]) for each in (*session.get_inputs(), *session.get_outputs())}
    expected = {"image": ("tensor(uint8)", [side, side, 3]), "logits": ("tensor(float)", [len(names)])}
    for name, kind in expected.items():
        if shapes.get(name) != kind:
            raise metadata.refusal(f"{name} is {shapes.get(name, 'absent')}, not {kind}")
    return Classifier(
        path=path,
        config=config,
        names=names,
        wnids=metadata.texts("wnids"),
        step=metadata.read("step", int) if "step" in metadata.values else None,
        # A file may be older than this record, and lie in its run's folder.
        pictures=metadata.pictures() or Workdir(path.parent).read_pictures(),
        temperature=_read_temperature(metadata),
        logits=lambda images: session.run(["logits"], {"image": images})[0],
    )


def _read_temperature(metadata: Metadata) -> float:
    """The temperature that is in the file's weights; one that is not calibrated tells none."""
    if "calibration" not in metadata.values:
        return 1.0
    temperature = metadata.read("calibration", dict).get("temperature")
    if not isinstance(temperature, float):
        raise metadata.refusal(f"its metadata has a calibration with the temperature {temperature!r}")
    return temperature


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions
    return options
