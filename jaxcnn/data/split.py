"""The pictures of one split: training or validation."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from jaxcnn.data.rows import Rows


@dataclass(frozen=True)
class Split:
    """Decoded pictures with their class indices.

    Attributes:
      images: RGB, read from disk when they are indexed.
      labels: class indices; negative where a picture has no label.
    """

    images: UInt8[np.ndarray, "n size size 3"] | UInt8[Rows, "n size size 3"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Int64[np.ndarray, " k"]) -> "Split":
        """Returns the pictures at these positions, without copying their pixels."""
        if isinstance(self.images, Rows):
            return Split(Rows(self.images.array, self.images.indices[rows]), self.labels[rows])
        return Split(Rows(self.images, rows), self.labels[rows])
