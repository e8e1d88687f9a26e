"""How a picture of any shape becomes the model's input: the rule that its file states, the same as in training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

_MODES = ("stretch", "crop", "pad")
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# Colour of what `pad` adds.
_GRAY = (127, 127, 127)

# The largest square whose centre is the input: of larger ones training makes no files.
_MAX_CROP = 4


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The value of `resize` in a model file's metadata.

    Pixels are computed in two steps, bit for bit as in `jaxcnn.data.resize`:

    1. Scale, with Pillow's resize and `filter`. `stretch`: the whole picture, to the size of the input. `crop`: the
       central square, whose side is the shorter side of the picture, to `side` x `side` pixels. `pad`: the whole
       picture, so that its longer side becomes that of the input; the other is rounded, halves up, to at least 1.
    2. Place the result in the middle of a gray square of the input's size, at half the difference, rounded down. What
       lies outside of the square is cut off.
    """

    mode: str = "stretch"
    filter: str = "bicubic"
    side: int | None = None
    """For `crop`, the side of the scaled central square in pixels."""

    @classmethod
    def parse(cls, value: Any, *, height: int, width: int) -> "Resize":
        """Reads the value in a file whose model takes pictures of this size.

        Raises:
          ValueError: this server cannot resize in that way; the message says why, without the value.
        """
        if not isinstance(value, Mapping) or not value.keys() <= {"mode", "filter", "side"}:
            raise ValueError("not an object with the keys mode, filter and, for crop, side")
        mode, side = value.get("mode"), value.get("side")
        if mode not in _MODES or value.get("filter") not in tuple(_FILTERS):
            raise ValueError(f"not a mode of {', '.join(_MODES)} with a filter of {', '.join(_FILTERS)}")
        if mode != "stretch" and height != width:
            raise ValueError(f"not stretch, as an input that is not square needs ({height} x {width})")
        if (mode == "crop") != (side is not None):
            raise ValueError("not with a side for crop alone")
        if side is not None and (type(side) is not int or not height <= side <= _MAX_CROP * height):
            raise ValueError(f"not with a side from {height} to {_MAX_CROP * height}")
        return cls(**value)

    def least(self, height: int, width: int) -> int:
        """Returns the side in pixels that both sides of a picture need, so that scaling does not enlarge it."""
        return self.side or max(height, width)

    def scale(
        self, image: Image.Image, *, height: int, width: int, extent: tuple[float, float] | None = None
    ) -> Image.Image:
        """Scales a picture: the first step. What is scaled already does not change.

        Args:
          image: the picture.
          height: height of the model's input in pixels.
          width: width of the model's input in pixels.
          extent: width and height that the whole picture covers in `image`, from its upper left corner. They are
            fractions of pixels for a JPEG that was decoded at a fraction of its size. None: all of `image`.
        """
        columns, rows = extent or image.size
        target, box = (width, height), (0.0, 0.0, columns, rows)
        if self.side is not None:
            short = min(columns, rows)
            box = ((columns - short) / 2, (rows - short) / 2, (columns + short) / 2, (rows + short) / 2)
            target = (self.side, self.side)
        elif self.mode == "pad":
            long = max(columns, rows)
            target = (_rounded(columns * width / long), _rounded(rows * height / long))
        return image.resize(target, _FILTERS[self.filter], box=box)


def place(image: Image.Image, *, height: int, width: int) -> Image.Image:
    """Places a scaled picture in the middle of the model's input: the second step."""
    if image.size == (width, height):
        return image
    canvas = Image.new("RGB", (width, height), _GRAY)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _rounded(length: float) -> int:
    return max(math.floor(length + 0.5), 1)
