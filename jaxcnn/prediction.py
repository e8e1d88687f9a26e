"""What a classifier says about a picture, and the kinds of pictures that it takes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from jaxcnn.data.decoding import decode, prepare
from jaxcnn.data.resize import STRETCH, Resize, centre
from jaxcnn.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""The path of a file, a Pillow picture, or a uint8 array [height, width, 3], RGB."""


@dataclass(frozen=True)
class ClassProbability:
    """A class, and the probability that the model gives it.

    Attributes:
      name: name of the class.
      index: its position in the model's outputs, counted from 0.
      probability: from 0 to 1; the probabilities of all classes add up to 1.
    """

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one picture.

    Attributes:
      top: the most probable classes, the first is the answer; of equal ones the lower index comes first.
    """

    top: tuple[ClassProbability, ...]

    @property
    def name(self) -> str:
        """Name of the most probable class."""
        return self.top[0].name

    @property
    def index(self) -> int:
        """Index of the most probable class."""
        return self.top[0].index

    @property
    def probability(self) -> float:
        """Probability of the most probable class."""
        return self.top[0].probability


def rank_classes(logits: Float[np.ndarray, " classes"], *, names: tuple[str, ...], top_k: int) -> Prediction:
    """Returns the `top_k` most probable classes, or all if there are fewer."""
    # The softmax, shifted so that no exponential overflows.
    values = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = values / values.sum()
    # Stable, so that classes of equal probability stay in the order of their indices, as argmax has it.
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return Prediction(tuple(ClassProbability(names[i], int(i), float(probabilities[i])) for i in best))


def check_finite(logits: Float32[np.ndarray, "n classes"], places: Sequence[str]) -> None:
    """Raises UserError if a logit is not finite, which names the first such picture by its entry in `places`."""
    invalid = ~np.isfinite(logits).all(axis=1)
    if invalid.any():
        where = places[int(invalid.argmax())]
        raise UserError(
            f"the model's outputs for {where} are not finite numbers; it has diverged: train again with a lower "
            "--optim.learning_rate"
        )


def is_picture(value: object) -> TypeGuard[Picture]:
    """Returns whether a value is one picture, rather than an iterable of pictures."""
    # An array has one picture or, with a fourth dimension, many.
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    return isinstance(value, str | os.PathLike | Image.Image)


def describe_picture(picture: object, *, number: int) -> str:
    """Returns what messages call a picture: its path, or its number, counted from 0."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    return f"picture {number}"


def to_input(
    picture: object, *, size: int, resize: Resize = STRETCH, where: str
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Prepares a picture as in training and evaluation; see `jaxcnn.data.decoding.decode`.

    Args:
      picture: a large JPEG is decoded at a fraction of its size if it is given by its path; Pillow decodes it whole.
      size: side of the result in pixels.
      resize: how the picture becomes a square.
      where: names the picture in messages.

    Raises:
      UserError: the file cannot be read, or the picture is damaged, too large, or something else.
    """
    window = centre(resize.stored(size), size)
    if isinstance(picture, str | os.PathLike):
        return decode(_read(Path(picture), where), size=size, resize=resize, where=where)[window, window]
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UserError(
                f"{where} is an array of {picture.dtype} {list(picture.shape)}; give uint8 [height, width, 3], RGB"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise UserError(f"{where} is of type {type(picture).__name__}; give a path, a Pillow picture or a uint8 array")
    return prepare(picture, size=size, resize=resize, where=where)[window, window]


def _read(path: Path, where: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    # Beside errors of the file system: a home directory that does not exist, a null character.
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where} cannot be read: {reason}; give the path of a picture") from error
