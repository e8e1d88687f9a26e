"""Many short texts in little memory."""

import itertools
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BLOCK = 2**12
"""Texts that lie in one byte string."""


class _Block(NamedTuple):
    """Texts behind each other, and where each of them begins; the last bound is the end of all."""

    content: bytes
    bounds: "array[int]"


class Texts:
    """A sequence of texts that can grow, such as the paths of ten million files.

    A text takes four bytes more than its characters in UTF-8; an object of Python takes 50 more. Full blocks are never
    copied again, so memory holds no second copy while the sequence grows.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Takes texts to begin with."""
        self._blocks: list[_Block] = []
        self._last: list[str] = []
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds a text at the end."""
        self._last.append(text)
        if len(self._last) == BLOCK:
            # The names of files need not be valid Unicode.
            encoded = [text.encode("utf-8", "surrogatepass") for text in self._last]
            bounds = array("i", itertools.accumulate(map(len, encoded), initial=0))
            self._blocks.append(_Block(b"".join(encoded), bounds))
            self._last = []

    def __iter__(self) -> Iterator[str]:
        for content, bounds in self._blocks:
            for start, end in itertools.pairwise(bounds):
                yield content[start:end].decode("utf-8", "surrogatepass")
        yield from self._last

    def __len__(self) -> int:
        return BLOCK * len(self._blocks) + len(self._last)

    def __getitem__(self, index: int, /) -> str:
        number, place = divmod(range(len(self))[index], BLOCK)
        if number == len(self._blocks):
            return self._last[place]
        content, bounds = self._blocks[number]
        return content[bounds[place] : bounds[place + 1]].decode("utf-8", "surrogatepass")
