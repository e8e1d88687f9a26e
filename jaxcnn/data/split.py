"""The pictures of one split: training or validation."""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8

from jaxcnn.data.encoded_images import EncodedImages
from jaxcnn.data.resize import centre
from jaxcnn.data.rows import Rows


def facts_type(longest: int) -> np.dtype[Any]:
    """Returns the type of the record of a picture's file.

    Its fields are `file`, the path inside the folder or zip; `same` and `alike`, the numbers of its groups of pictures
    with the same pixels and of those that are the same or nearly so, -1 for a picture that occurs once; `least`, the
    shorter side in pixels; and `is_gray`.

    Args:
      longest: most bytes of a path.
    """
    return np.dtype(
        [("file", f"S{max(longest, 1)}"), ("same", "<i4"), ("alike", "<i4"), ("least", "<i4"), ("is_gray", "?")]
    )


@dataclass(frozen=True)
class Split:
    """Pictures with their class indices.

    Attributes:
      images: RGB, read from disk when they are indexed. They may be larger than the model's input, so that random crops
        have something to crop.
      labels: class indices; negative where a picture has no label.
      side: side of the model's input in pixels. None: that of the pictures.
      facts: what is known of the files that the pictures come from, one record for each; None if nothing is. See
        `facts_type`.
      crop_scale: smallest and largest share of a picture's area in the random crops that training sees, if they are
        taken while the pictures are decoded. None: training sees `images`.
    """

    images: (
        UInt8[np.ndarray, "n stored stored 3"]
        | UInt8[Rows, "n stored stored 3"]
        | UInt8[EncodedImages, "n stored stored 3"]
    )
    labels: Int32[np.ndarray, " n"]
    side: int | None = None
    facts: np.ndarray | None = None
    crop_scale: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shown(
        self,
    ) -> UInt8[np.ndarray, "n side side 3"] | UInt8[Rows, "n side side 3"] | UInt8[EncodedImages, "n side side 3"]:
        """The pictures as the model sees them in evaluation: the middle of `images`."""
        stored = self.images.shape[1]
        if self.side in (None, stored):
            return self.images
        rows = self.images if isinstance(self.images, Rows) else Rows(self.images, np.arange(len(self)))
        return dataclasses.replace(rows, window=centre(stored, self.side))

    def select(self, rows: Int64[np.ndarray, " k"]) -> "Split":
        """Returns the pictures at these positions, without copying their pixels."""
        if isinstance(self.images, Rows):
            rows_on_disk = Rows(self.images.array, self.images.indices[rows])
        else:
            rows_on_disk = Rows(self.images, rows)
        facts = None if self.facts is None else self.facts[rows]
        return dataclasses.replace(self, images=rows_on_disk, labels=self.labels[rows], facts=facts)

    def cropped(self, area: tuple[float, float] | None) -> "Split":
        """Returns the pictures with `crop_scale` set, if they are still encoded; others are cropped on the device."""
        return dataclasses.replace(self, crop_scale=area) if self._encoded() is not None else self

    def read(self, rows: Int64[np.ndarray, " k"], crops: Float64[np.ndarray, "k 4"]) -> UInt8[np.ndarray, "k _ _ 3"]:
        """Returns the pictures at these positions as training sees them.

        Args:
          rows: the positions.
          crops: random numbers, see `crops.draw_crops`; without effect unless `crop_scale` is set.
        """
        encoded = self._encoded()
        if self.crop_scale is None or encoded is None:
            images: UInt8[np.ndarray, "k _ _ 3"] = self.images[rows]
            return images
        places = self.images.indices[rows] if isinstance(self.images, Rows) else rows
        return encoded.crop(places, crops, area=self.crop_scale)

    def _encoded(self) -> EncodedImages | None:
        images = self.images.array if isinstance(self.images, Rows) else self.images
        return images if isinstance(images, EncodedImages) else None

    def file(self, row: int) -> str:
        """Returns the path of a picture's file inside the folder or zip of the data set, or what else names it."""
        return str(row) if self.facts is None else os.fsdecode(bytes(self.facts["file"][row]))
