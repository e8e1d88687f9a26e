"""The wire formats: from the bytes of a request to pictures, and from the model's outputs to the bytes of an answer.

Each has a `Query`. All of its work is done on the threads of `server.workers`, none on the event loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.model import Model

type Outputs = Mapping[str, npt.NDArray[np.float32]]
"""The model's outputs by name, float32 [pictures, ...]."""


@dataclass(frozen=True)
class Answer:
    """The body of a response, and headers that belong to it."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """What a query asks, once it is understood."""

    images: npt.NDArray[np.uint8]
    """[pictures, height, width, 3], as the model takes them."""
    outputs: frozenset[str]
    """Which of the model's outputs the answer needs."""
    answer: Callable[[Outputs], Answer]
    """Writes the answer from the outputs for these pictures."""


class AbandonedError(Exception):
    """Nobody waits for the answer any more."""


class Query(Protocol):
    """A request for predictions whose body has arrived."""

    @property
    def size(self) -> int:
        """Length of the body."""

    def decode(self, model: Model, is_wanted: Callable[[], bool]) -> Decoded:
        """Takes the body apart and decodes its pictures.

        Args:
            model: what they are decoded for.
            is_wanted: whether anyone still waits for the answer; asked before each picture.

        Raises:
            HTTPException: what is wrong with the request.
            AbandonedError: nobody waits any more.
        """
