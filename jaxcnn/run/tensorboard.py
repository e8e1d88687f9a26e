"""What TensorBoard shows of a run: its curves and, when it has ended, its settings and its confusion matrix."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from jaxcnn.config import Config
from jaxcnn.metrics import Evaluation
from jaxcnn.run.workdir import flat_settings

SIDE = 512
"""Least side of the confusion matrix in pixels."""


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

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def write_summary(workdir: Path, config: Config, evaluation: Evaluation, *, step: int) -> None:
    """Appends a run's settings as hyperparameters, its final metrics and its confusion matrix to its events.

    Args:
      workdir: the run's folder.
      config: its settings.
      evaluation: of its best checkpoint.
      step: the step of that checkpoint.

    Raises:
      OSError: the folder cannot be written.
    """
    events = EventsWriter(str(workdir / "events"))
    try:
        settings = {name: _simple(value) for name, value in flat_settings(config)}
        for summary in hparams(settings, {f"final/{name}": value for name, value in evaluation.scalars().items()}):
            events.write_event(Event(step=step, summary=summary))
        scalars = [
            Summary.Value(tag=f"final/{name}", simple_value=value) for name, value in evaluation.scalars().items()
        ]
        image = Summary.Value(tag="validation/confusion", image=_encode(draw_confusion(evaluation.confusion)))
        events.write_event(Event(step=step, summary=Summary(value=[*scalars, image])))
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
        height=picture.height, width=picture.width, colorspace=1, encoded_image_string=buffer.getvalue()
    )
