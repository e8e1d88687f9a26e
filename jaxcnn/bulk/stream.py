"""Classifies a stream of pictures on all cores, in their order and in little memory."""

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, UInt8

from jaxcnn.bulk.picture_files import PictureFile
from jaxcnn.data.decoding import decode
from jaxcnn.data.resize import centre
from jaxcnn.data.threads import map_ahead
from jaxcnn.errors import UserError
from jaxcnn.onnx_file import OnnxModel
from jaxcnn.prediction import Prediction, check_finite, rank_classes

BATCH = 16
"""Pictures in a batch. One thread runs it, which is as fast with few pictures as with many, and takes less memory."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
      file: the file.
      prediction: what the model says about it; None if it could not be read.
      error: why it could not be read; empty if it was.
      features: the model's features of the picture, if they were asked for.
    """

    file: PictureFile
    prediction: Prediction | None = None
    error: str = ""
    features: Float32[np.ndarray, " channels"] | None = None


type SaveHeatmap = Callable[[PictureFile, UInt8[np.ndarray, "side side 3"], Float32[np.ndarray, "rows columns"]], None]
"""Keeps the heatmap of a file, given the picture as the model sees it; called from several threads."""


def classify(
    model: OnnxModel,
    files: Iterable[PictureFile],
    *,
    top_k: int,
    features: bool = False,
    save_heatmap: SaveHeatmap | None = None,
) -> Generator[list[Outcome]]:
    """Yields what the model says about the files, in their order, a batch at a time; see `map_ahead`.

    Args:
      model: the model. It has the outputs that are asked for.
      files: the files.
      top_k: how many of the most probable classes a prediction lists.
      features: whether outcomes have the features.
      save_heatmap: where heatmaps go; None computes none.

    Raises:
      UserError: an output of the model is not finite, or a heatmap cannot be written.
    """
    outputs = ["logits", *(["features"] if features else []), *(["heatmap"] if save_heatmap else [])]
    work = partial(_classify_batch, model=model, outputs=outputs, top_k=top_k, save_heatmap=save_heatmap)
    return map_ahead(work, itertools.batched(files, BATCH))


def _classify_batch(
    files: Sequence[PictureFile],
    *,
    model: OnnxModel,
    outputs: Sequence[str],
    top_k: int,
    save_heatmap: SaveHeatmap | None,
) -> list[Outcome]:
    """Reads, prepares and classifies a few files."""
    # What can be read goes into one batch.
    prepared: list[UInt8[np.ndarray, "side side 3"] | str] = [_prepare(file, model) for file in files]
    readable = [number for number, picture in enumerate(prepared) if not isinstance(picture, str)]
    outcomes = [
        Outcome(file, error=error if isinstance(error, str) else "")
        for file, error in zip(files, prepared, strict=True)
    ]
    if not readable:
        return outcomes
    images = np.stack([prepared[number] for number in readable])
    found = dict(zip(outputs, model.run(images, outputs), strict=True))
    check_finite(found["logits"], [files[number].name for number in readable])
    # One outcome for each picture.
    for row, number in enumerate(readable):
        if save_heatmap is not None:
            save_heatmap(files[number], images[row], found["heatmap"][row])
        prediction = rank_classes(found["logits"][row], names=model.preparation.names, top_k=top_k)
        features = found["features"][row] if "features" in found else None
        outcomes[number] = Outcome(files[number], prediction, features=features)
    return outcomes


def _prepare(file: PictureFile, model: OnnxModel) -> UInt8[np.ndarray, "side side 3"] | str:
    """Returns the picture as the model sees it, or why the file cannot be read."""
    resize = model.preparation.resize
    window = centre(resize.stored(model.side), model.side)
    try:
        return decode(file.read(), size=model.side, resize=resize, where=file.name)[window, window]
    except UserError as error:
        return str(error)
