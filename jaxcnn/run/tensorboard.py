"""What TensorBoard shows of a run: augmented pictures, curves and, in the end, settings and a confusion matrix."""

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from jaxcnn.config import Config
from jaxcnn.metrics import MATRIX_LIMIT, Evaluation
from jaxcnn.run.flat_settings import flat_settings

SIDE = 512
"""Least side of a picture in pixels."""


class EventFile:
    """A file of events in the folder of a run; each session has its own."""

    def __init__(self, workdir: Path):
        # Not tensorboardX's SummaryWriter: on a full disk its thread dies, and the run then waits for it forever.
        self._writer = EventsWriter(str(workdir / "events"))

    def write_scalars(self, scalars: Mapping[str, float], *, step: int, time: float) -> None:
        """Appends the values at a step by their tags, and flushes them.

        Raises:
          OSError: the disk is full or cannot be written.
        """
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.write_event(Event(wall_time=time, step=step, summary=Summary(value=values)))
        self._writer.flush()

    def write_pictures(self, pictures: UInt8[np.ndarray, "count side side 3"], *, step: int) -> None:
        """Appends augmented pictures as one picture, and flushes it.

        Raises:
          OSError: the disk is full or cannot be written.
        """
        image = Summary.Value(tag="train/augmented", image=_encode(draw_grid(pictures)))
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[image])))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def draw_grid(pictures: UInt8[np.ndarray, "count side side 3"]) -> Image.Image:
    """Lays pictures beside each other in rows, about as many rows as columns, enlarged to at least `SIDE` pixels."""
    count, side = pictures.shape[:2]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * columns, side, side, 3), np.uint8)
    grid[:count] = pictures
    picture = Image.fromarray(grid.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, -1, 3))
    scale = max(1, -(-SIDE // picture.width))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def write_summary(workdir: Path, config: Config, evaluation: Evaluation, *, step: int) -> None:
    """Appends a run's settings as hyperparameters, its final metrics and its confusion matrix to its events.

    The matrix is left out if there are more than `MATRIX_LIMIT` classes.

    Args:
      workdir: the run's folder.
      config: its settings.
      evaluation: of its best checkpoint.
      step: the step of that checkpoint.

    Raises:
      OSError: the folder cannot be written.
    """
    settings = {name: _simple(value) for name, value in flat_settings(config)}
    final = {f"final/{name}": value for name, value in evaluation.scalars().items()}
    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in final.items()]
    if len(evaluation.per_class) <= MATRIX_LIMIT:
        scalars.append(Summary.Value(tag="validation/confusion", image=_encode(draw_confusion(evaluation.confusion))))
    events = EventsWriter(str(workdir / "events"))
    try:
        for summary in (*hparams(settings, final), Summary(value=scalars)):
            events.write_event(Event(step=step, summary=summary))
        events.flush()
    finally:
        events.close()


def _simple(value: object) -> bool | int | float | str:
    """Returns a setting as TensorBoard takes it."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def draw_confusion(confusion: Int64[np.ndarray, "classes classes"]) -> Image.Image:
    """Draws a confusion matrix, true classes down and predicted classes across.

    A cell is the darker the larger its share of its true class; the cube root makes rare mistakes visible.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    picture = Image.fromarray(np.round(255 * (1 - np.cbrt(shares))).astype(np.uint8))
    side = len(confusion) * max(1, -(-SIDE // len(confusion)))
    return picture.resize((side, side), Image.Resampling.NEAREST)


def _encode(picture: Image.Image) -> Summary.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return Summary.Image(
        height=picture.height,
        width=picture.width,
        colorspace=len(picture.getbands()),
        encoded_image_string=buffer.getvalue(),
    )
