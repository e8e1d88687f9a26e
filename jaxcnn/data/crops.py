"""Random crops that are taken from a whole picture while it is decoded."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

CROP_ASPECT = 4 / 3
"""Largest aspect ratio of a random resized crop (Szegedy et al. 2015)."""

KEY = 1
"""Sets the random numbers of crops apart from the order of an epoch."""


def draw_crops(*, seed: int, step: int, count: int) -> Float64[np.ndarray, "{count} 4"]:
    """Returns the random numbers of the crops of a batch, from 0 to 1; they depend on `seed` and `step` alone."""
    return np.random.default_rng([seed, step, KEY]).random((count, 4))


class Box(NamedTuple):
    """A rectangle in pixels. It may reach beyond the picture, which has gray bars there."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Crop:
    """A random resized crop (Szegedy et al. 2015) of a picture whose size is not known yet.

    The area is uniform, and so is the logarithm of the aspect ratio between the ratios that fit in the picture. No
    rectangle has to be rejected and drawn again.

    Attributes:
      area: smallest and largest share of the picture's area.
      draws: four numbers from 0 to 1: where the area, the aspect ratio, and the place from the left and from the top
        lie in their ranges.
    """

    area: tuple[float, float]
    draws: Float64[np.ndarray, " 4"]

    @property
    def share(self) -> float:
        """Share of the picture's area."""
        low, high = self.area
        return low + float(self.draws[0]) * (high - low)

    @property
    def least_side(self) -> float:
        """The shorter side of the crop is at least this share of the shorter side of the picture, whatever its size."""
        return math.sqrt(self.share / CROP_ASPECT)

    def box(self, width: int, height: int, *, mode: str) -> Box:
        """Returns the rectangle in a picture of a size.

        Args:
          width: pixels of a row.
          height: pixels of a column.
          mode: as `Resize.mode`. `crop`: a part of the whole picture, not only of its central square. `pad`: a part of
            the square around the picture, which may have gray bars. `stretch`: the aspect ratio is that of the
            stretched picture.
        """
        _, shape, across, down = map(float, self.draws)
        # The rectangle that the crop is a part of, in units in which its aspect ratio is measured.
        longer = max(width, height)
        frame_width, frame_height = map(float, (longer, longer) if mode == "pad" else (width, height))
        units = (1.0, 1.0) if mode == "stretch" else (frame_width, frame_height)
        sides = _sides(self.share * units[0] * units[1], shape, units)
        crop_width, crop_height = sides[0] * frame_width / units[0], sides[1] * frame_height / units[1]
        left = (width - frame_width) / 2 + across * (frame_width - crop_width)
        top = (height - frame_height) / 2 + down * (frame_height - crop_height)
        return Box(left, top, left + crop_width, top + crop_height)


def _sides(area: float, shape: float, frame: tuple[float, float]) -> tuple[float, float]:
    """Returns width and height of a rectangle of an area, with an aspect ratio of at most `CROP_ASPECT`.

    Args:
      area: the area. It is less in a frame that is so long that no such rectangle fits.
      shape: where the aspect ratio lies in its range, from 0 to 1.
      frame: width and height in which it has to fit.
    """
    # The range of the logarithm of width / height.
    low = max(-math.log(CROP_ASPECT), math.log(area / frame[1] ** 2))
    high = min(math.log(CROP_ASPECT), math.log(frame[0] ** 2 / area))
    if low > high:
        low = high = math.copysign(math.log(CROP_ASPECT), low + high)
    ratio = math.exp(low + shape * (high - low))
    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    shrink = min(1.0, frame[0] / width, frame[1] / height)
    return width * shrink, height * shrink
