"""Some rows of an array that may be on disk."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from jaxcnn.data.encoded_images import EncodedImages


@dataclass(frozen=True)
class Rows:
    """A selection of the rows of an array; indexing reads only the rows asked for.

    Attributes:
      array: all pictures, often memory-mapped or still encoded.
      indices: the selected rows, in the order in which they are presented.
      window: which pixel rows, and columns, of each picture are presented; both are square. None: all.
    """

    array: UInt8[np.ndarray, "m height width 3"] | UInt8[EncodedImages, "m height width 3"]
    indices: Int64[np.ndarray, " n"]
    window: slice | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the selection."""
        if self.window is None:
            return (len(self.indices), *self.array.shape[1:])
        side = self.window.stop - self.window.start
        return (len(self.indices), side, side, 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array."""
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        """Returns the rows at an index, a slice, or an array of indices along the first axis."""
        found = self.array[self.indices[index]]
        return found if self.window is None else found[..., self.window, self.window, :]
