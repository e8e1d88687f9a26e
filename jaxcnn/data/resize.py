"""How a picture of any shape becomes a square: one rule for training, predictions, exported files and the server."""

import math
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from jaxcnn.config import DataConfig
from jaxcnn.data.crops import Box

GRAY = (127, 127, 127)
"""Colour of what `pad` adds. Normalisation turns it to about zero, as the padding of convolutions."""

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
"""Pillow's filters, which average areas where pictures shrink."""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How a picture becomes the square that a model sees; the value of `resize` in an exported file.

    Pixels are computed in two steps, here and bit for bit in `server.resize` and in the code on the model card:

    1. Scale, with Pillow's resize and `filter`. `stretch`: the whole picture, to the size of the input. `crop`: the
       central square, whose side is the shorter side of the picture, to `side` x `side` pixels. `pad`: the whole
       picture, so that its longer side becomes that of the input; the other is rounded, halves up, to at least 1.
    2. Place the result in the middle of a gray square of the input's size, at half the difference, rounded down. What
       lies outside of the square is cut off.

    Attributes:
      mode: which part of the picture is shown, and whether its shape is kept.
      filter: the filter that computes the pixels.
      side: for `crop`, the side of the scaled central square in pixels; training takes its random crops from all of it.
        None for the others.
    """

    mode: Literal["stretch", "crop", "pad"] = "stretch"
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    side: int | None = None

    @classmethod
    def of(cls, config: DataConfig) -> "Resize":
        """Returns what the settings ask for."""
        config = config.resolved()
        assert config.fit is not None
        assert config.filter is not None
        side = None if config.crop is None else round(config.image_size / config.crop)
        return cls(mode=config.fit, filter=config.filter, side=side)

    def stored(self, size: int) -> int:
        """Returns the side of the squares that are kept for a model that sees `size` x `size` pixels."""
        return self.side or size

    def scale(self, image: Image.Image, size: int, extent: tuple[float, float] | None = None) -> Image.Image:
        """Scales a picture: the first step. What is scaled already does not change.

        Args:
          image: the picture.
          size: side of the model's input in pixels.
          extent: width and height that the whole picture covers in `image`, from its upper left corner. They are
            fractions of pixels for a JPEG that was decoded at a fraction of its size. None: all of `image`.
        """
        width, height = extent or image.size
        target, box = (size, size), (0.0, 0.0, width, height)
        if self.mode == "crop":
            short, stored = min(width, height), self.stored(size)
            box = ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2)
            target = (stored, stored)
        elif self.mode == "pad":
            long = max(width, height)
            target = (_rounded(width * size / long), _rounded(height * size / long))
        return image.resize(target, FILTERS[self.filter], box=box)

    def cut(self, image: Image.Image, box: Box, size: int) -> Image.Image:
        """Scales a part of a picture to `size` x `size` pixels; what lies outside of the picture is gray."""
        width, height = map(float, image.size)
        inside = Box(max(box.left, 0.0), max(box.top, 0.0), min(box.right, width), min(box.bottom, height))
        if inside == box:
            return image.resize((size, size), FILTERS[self.filter], box=box)
        # The pixels of the result that the picture covers.
        across, down = size / (box.right - box.left), size / (box.bottom - box.top)
        left, right = round((inside.left - box.left) * across), round((inside.right - box.left) * across)
        top, bottom = round((inside.top - box.top) * down), round((inside.bottom - box.top) * down)
        canvas = Image.new("RGB", (size, size), GRAY)
        if right > left and bottom > top:
            canvas.paste(image.resize((right - left, bottom - top), FILTERS[self.filter], box=inside), (left, top))
        return canvas

    def pad(self, image: Image.Image, size: int) -> Image.Image:
        """Adds bars to a scaled picture if the mode is `pad`; the result is the square that is kept."""
        if self.mode != "pad":
            return image
        canvas = Image.new("RGB", (size, size), GRAY)
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return canvas


STRETCH = Resize()
"""The whole picture, stretched with a bicubic filter: all that earlier versions did."""


def centre(stored: int, shown: int) -> slice:
    """Returns which rows, or columns, of a square that is kept are shown to the model."""
    start = -((shown - stored) // 2)
    return slice(start, start + shown)


def _rounded(length: float) -> int:
    return max(math.floor(length + 0.5), 1)
