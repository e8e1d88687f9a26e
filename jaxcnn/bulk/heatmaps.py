"""Writes heatmaps as pictures: where in a picture a model found the evidence for its answer."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from jaxcnn.bulk.file_name import fit_name
from jaxcnn.bulk.picture_files import PictureFile
from jaxcnn.disk import sync
from jaxcnn.errors import UserError

SMALLEST = 256
"""Least side of a heatmap's picture in pixels: smaller inputs are enlarged by a whole number."""

OPACITY = 0.6
"""Opacity of the colour where the evidence is strongest."""

COLOUR = (255, 64, 0)
"""What is laid over the picture: rare in photographs, and visible on light and on dark."""


@dataclass(frozen=True)
class Heatmaps:
    """A folder of heatmaps, one for each picture, by the path of the picture."""

    folder: Path

    def path(self, name: str) -> Path:
        """Returns where the heatmap of a file is kept: at the path of the file, below the folder."""
        path = Path(os.path.abspath(name) if ".." in Path(name).parts else name)
        return self.folder / path.relative_to(path.anchor).with_name(fit_name(f"{path.name}.png", str(path)))

    def save(
        self,
        file: PictureFile,
        image: UInt8[np.ndarray, "side side 3"],
        heatmap: Float32[np.ndarray, "rows columns"],
    ) -> None:
        """Writes the heatmap of a file, laid over what the model saw of it.

        Raises:
          UserError: it cannot be written.
        """
        path = self.path(file.name)
        unfinished = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            overlay(image, heatmap).save(unfinished, "PNG")
            sync(unfinished)
            unfinished.replace(path)
        except OSError as error:
            raise UserError(f"the heatmap {path} cannot be written: {error.strerror}; give other --heatmaps") from error


def overlay(image: UInt8[np.ndarray, "side side 3"], heatmap: Float32[np.ndarray, "rows columns"]) -> Image.Image:
    """Lays a heatmap over a picture.

    Args:
      image: the picture as the model sees it.
      heatmap: the evidence in each part of it, from 0 to 1.
    """
    side = image.shape[0] * -(-SMALLEST // image.shape[0])
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    opacity = Image.fromarray(np.round(255 * OPACITY * heatmap.clip(0, 1)).astype(np.uint8))
    picture.paste(COLOUR, mask=opacity.resize((side, side), Image.Resampling.BICUBIC))
    return picture
