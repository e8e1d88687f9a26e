"""Encoded pictures that look like an array of decoded ones."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from jaxcnn.data.crops import Crop
from jaxcnn.data.decoding import decode, decode_crop, decoding_threads, warnings_ignored
from jaxcnn.data.pictures import Pictures
from jaxcnn.data.resize import Resize


@dataclass(frozen=True)
class EncodedImages:
    """Pictures that are decoded whenever they are indexed; all threads that decode do so together.

    Attributes:
      pictures: the encoded pictures.
      size: side of the model's input in pixels.
      resize: how they become squares.
    """

    pictures: Pictures
    size: int
    resize: Resize

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all decoded pictures."""
        stored = self.resize.stored(self.size)
        return (len(self.pictures), stored, stored, 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the decoded pictures."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Any) -> Any:
        """Returns the picture at an index, or those at a slice or an array of indices.

        Raises:
          UserError: a picture cannot be read; the message names it.
        """
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        if np.ndim(index) == 0:
            return self._decode(int(index))
        return self._stack(lambda place: self._decode(int(index[place])), count=len(index), side=self.shape[1])

    def crop(
        self, index: Int64[np.ndarray, " n"], draws: Float64[np.ndarray, "n 4"], *, area: tuple[float, float]
    ) -> UInt8[np.ndarray, "n {self.size} {self.size} 3"]:
        """Returns a random crop of each of some pictures, taken from the whole picture.

        Args:
          index: which pictures.
          draws: the random numbers of the crops, see `crops.draw_crops`.
          area: smallest and largest share of the area of a picture.

        Raises:
          UserError: a picture cannot be read; the message names it.
        """

        def cut(place: int) -> UInt8[np.ndarray, "side side 3"]:
            picture, crop = self.pictures[int(index[place])], Crop(area, draws[place])
            return decode_crop(picture.encoded, crop, size=self.size, resize=self.resize, where=picture.where)

        return self._stack(cut, count=len(index), side=self.size)

    def _decode(self, place: int) -> UInt8[np.ndarray, "stored stored 3"]:
        picture = self.pictures[place]
        return decode(picture.encoded, size=self.size, resize=self.resize, where=picture.where)

    def _stack(
        self, make: Callable[[int], np.ndarray], *, count: int, side: int
    ) -> UInt8[np.ndarray, "{count} {side} {side} 3"]:
        """Returns what a function makes for each place, called by all threads that decode."""
        images = np.empty((count, side, side, 3), np.uint8)
        # Each thread takes the next place that is left, which costs less than a task for each.
        places = iter(range(count))

        def fill() -> None:
            with warnings_ignored:
                for place in places:
                    images[place] = make(place)

        threads = decoding_threads()
        for done in [_threads().submit(fill) for _ in range(threads)]:
            done.result()  # Raises what a thread has raised
        return images


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Returns the threads of this process that decode: one for each core, whatever is read at the same time."""
    return ThreadPoolExecutor(decoding_threads(), thread_name_prefix="decoding")
