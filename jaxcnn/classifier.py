"""A trained classifier, opened from a workdir or from the ONNX file that was exported from it."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float32, UInt8

from jaxcnn.config import Config
from jaxcnn.data import Fingerprint, Resize
from jaxcnn.errors import UserError
from jaxcnn.metadata import Metadata
from jaxcnn.onnx_file import check_contract, not_exported, open_session
from jaxcnn.prediction import Picture, Prediction, check_finite, describe_picture, is_picture, rank_classes, to_input
from jaxcnn.run.workdir import Workdir

LogitsFunction = Callable[[UInt8[np.ndarray, "batch side side 3"]], Float32[Any, "batch classes"]]
"""Computes the logits of a batch of RGB pictures, as an array of NumPy or JAX."""

_BATCH = 64
"""Pictures that `predict` reads and classifies at once."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained classifier. Use `load`.

    Attributes:
      path: the workdir or the file.
      config: settings of the training. The paths in a workdir's data settings are valid in any working directory.
      names: class names, in the order of the outputs.
      wnids: WordNet ids in the same order; empty if the data had none.
      step: training steps taken; None in a file that does not record them.
      pictures: fingerprint of the split it was trained on; None in a file that does not record it.
      temperature: what the logits are divided by already; 1 if they are not calibrated.
      logits: maps uint8 pictures [batch, side, side, 3] to float32 logits [batch, classes].
    """

    path: Path
    config: Config
    names: tuple[str, ...]
    wnids: tuple[str, ...]
    step: int | None
    pictures: Fingerprint | None
    temperature: float
    logits: LogitsFunction

    @overload
    def predict(self, pictures: Picture, *, top_k: int = 5) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, pictures: Iterable[Picture], *, top_k: int = 5) -> list[Prediction]: ...

    def predict(self, pictures: object, *, top_k: int = 5) -> Prediction | list[Prediction]:
        """Classifies pictures of any size, prepared as in training.

        The EXIF orientation is applied, transparency becomes white, and the picture is cropped, padded or stretched to
        the model's size, as its data settings say.

        Args:
          pictures: one or many: paths, Pillow pictures, or uint8 arrays [height, width, 3], RGB. Many are a list, an
            iterator, or an array [n, height, width, 3]; they are read batch by batch.
          top_k: how many of the most probable classes a prediction lists, or all if there are fewer.

        Returns:
          A prediction for one picture, a list for many.

        Raises:
          UserError: a picture cannot be read, or the model gives an output that is not finite.
        """
        if top_k < 1:
            raise UserError(f"top_k is {top_k}; it must be at least 1")
        # One picture.
        if is_picture(pictures):
            return self._predict_batch([pictures], first=0, top_k=top_k)[0]
        if not isinstance(pictures, Iterable):
            raise UserError(
                f"pictures is of type {type(pictures).__name__}; give paths, Pillow pictures or uint8 arrays"
            )
        # Many: read and classified batch by batch, so that memory does not grow with their number.
        found: list[Prediction] = []
        for batch in itertools.batched(pictures, _BATCH):
            found += self._predict_batch(batch, first=len(found), top_k=top_k)
        return found

    def _predict_batch(self, pictures: Sequence[object], *, first: int, top_k: int) -> list[Prediction]:
        """Classifies pictures that are numbered from `first` on in messages."""
        size, resize, count = self.config.data.image_size, Resize.of(self.config.data), len(pictures)
        places = [describe_picture(picture, number=first + i) for i, picture in enumerate(pictures)]
        # Padded to a power of two: JAX compiles the model of a workdir for every batch size.
        images = np.zeros((1 << (count - 1).bit_length(), size, size, 3), np.uint8)
        for i, (picture, where) in enumerate(zip(pictures, places, strict=True)):
            images[i] = to_input(picture, size=size, resize=resize, where=where)
        logits = np.asarray(self.logits(images))[:count]
        check_finite(logits, places)
        return [rank_classes(row, names=self.names, top_k=top_k) for row in logits]


def load(path: str | os.PathLike[str]) -> Classifier:
    """Opens the best checkpoint of a workdir, or an ONNX file that `python -m export` made.

    Raises:
      UserError: the path is missing or neither of the two.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a workdir or an .onnx file")
    return open_onnx(path) if path.is_file() else open_run(path)


def open_run(path: Path) -> Classifier:
    """Opens the best checkpoint of a workdir, which needs JAX.

    Raises:
      UserError: the folder is not a workdir, or has no checkpoint that can be read.
    """
    from jaxcnn.run.checkpoint import load_model
    from jaxcnn.step import exact_eval_step

    trained, run = load_model(path), Workdir(path)
    # The step of evaluation, so that predictions are those that were evaluated.
    logits = partial(exact_eval_step, trained.variables, model=trained.model)
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
      UserError: the file is not ONNX, breaks the contract of `python -m export`, or differs from its description.
    """
    session = open_session(path)
    try:
        metadata = Metadata.from_props(session.get_modelmeta().custom_metadata_map)
        _check_preparation(metadata)
        check_contract(session, classes=len(metadata.names), image_size=metadata.image_size)
    except UserError as error:
        raise not_exported(path, error) from None
    return Classifier(
        path=path,
        config=metadata.config,
        names=metadata.names,
        wnids=metadata.wnids,
        step=metadata.step,
        # A file of an earlier version has no such record, but may lie in its run's folder.
        pictures=metadata.pictures or Workdir(path.parent).read_pictures(),
        temperature=1.0 if metadata.calibration is None else metadata.calibration.temperature,
        logits=lambda images: session.run(["logits"], {"image": images})[0],
    )


def read_config(path: Path) -> Config:
    """Reads the settings of a classifier's training without opening it; data settings as `Classifier.config` has them.

    Raises:
      UserError: as `load`, except for a checkpoint that cannot be read.
    """
    if not path.is_dir():
        return load(path).config
    run = Workdir(path)
    return dataclasses.replace(run.read_config(), data=run.read_data_config())


def _check_preparation(metadata: Metadata) -> None:
    """Raises UserError if the preparation of pictures is not the one that the recorded settings imply."""
    side = metadata.config.data.image_size
    if metadata.image_size != (side, side):
        raise UserError(f"metadata.image_size is {list(metadata.image_size)}, but {side} in metadata.config")
    implied = Resize.of(metadata.config.data)
    if metadata.resize != implied:
        raise UserError(f"metadata.resize is {metadata.resize}, but {implied} in metadata.config")
