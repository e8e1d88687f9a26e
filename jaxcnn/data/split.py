"""The pictures of one split: training or validation."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from jaxcnn.data.resize import centre
from jaxcnn.data.rows import Rows


@dataclass(frozen=True)
class Split:
    """Decoded pictures with their class indices.

    Attributes:
      images: RGB, read from disk when they are indexed. They may be larger than the model's input, so that random crops
        have something to crop.
      labels: class indices; negative where a picture has no label.
      side: side of the model's input in pixels. None: that of the pictures.
    """

    images: UInt8[np.ndarray, "n stored stored 3"] | UInt8[Rows, "n stored stored 3"]
    labels: Int32[np.ndarray, " n"]
    side: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shown(self) -> UInt8[np.ndarray, "n side side 3"] | UInt8[Rows, "n side side 3"]:
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
        return Split(rows_on_disk, self.labels[rows], self.side)
