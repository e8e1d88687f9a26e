"""The wire formats: from the bytes of a request to pictures, and from the model's outputs to the bytes of a response.

Each format has a `Query`. All of its work is done on the threads of `server.workers`, none on the event loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.model import Model
from server.picture import Cost

type Outputs = Mapping[str, npt.NDArray[np.float32]]
"""The model's outputs by name, float32 [pictures, ...]."""


@dataclass(frozen=True)
class Answer:
    """The body of a response, and the headers that belong to it."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """A query after its body has been parsed and its pictures decoded."""

    images: npt.NDArray[np.uint8]
    """[pictures, height, width, 3], as the model takes them."""
    outputs: frozenset[str]
    """The model's outputs that the answer needs."""
    answer: Callable[[Outputs], Answer]
    """Encodes the answer from the outputs for these pictures."""


class AbandonedError(Exception):
    """Nobody waits for the answer any more: the client is gone, or the deadline has passed."""


class Work(Protocol):
    """The request that a query is decoded for."""

    def is_wanted(self) -> bool:
        """Whether anyone still waits for the answer; called before each picture."""

    def check_cost(self, cost: Cost) -> None:
        """Decides whether the pictures may be decoded now; called before the first one. It may raise any exception."""


class Query(Protocol):
    """A request for predictions whose body has arrived."""

    @property
    def size(self) -> int:
        """Length of the body in bytes, or the largest that it may have once decompressed."""

    def decode(self, model: Model, work: Work) -> Decoded:
        """Parses the body and decodes its pictures.

        Args:
          model: the model that will run on the pictures.
          work: the request.

        Raises:
          HTTPException: the request is invalid.
          AbandonedError: nobody waits any more.
        """
