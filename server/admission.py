"""Admission control: bounds the requests in progress and the bytes of their bodies, and says whether to send more."""

from collections.abc import Iterator
from contextlib import contextmanager

from server import errors
from server.metrics import Metrics
from server.settings import Settings


class Place:
    """What one request occupies: memory for its body as it arrives, then a place in the queue."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._bytes = 0
        self._is_entered = False

    def hold(self, size: int) -> None:
        """Reserves memory for a body of `size` bytes so far.

        Raises:
          HTTPException: 503, there is not enough memory.
        """
        if size > self._bytes:
            self._admission.hold(size - self._bytes)
            self._bytes = size

    def enter(self, expected_wait: float) -> None:
        """Takes a place in the queue. Call it once the body is complete, so that slow clients keep nobody out.

        Raises:
          HTTPException: 503, all places are taken.
        """
        self._admission.enter(expected_wait)
        self._is_entered = True

    def release(self) -> None:
        """Frees the memory and the place in the queue."""
        self._admission.release(self._bytes, requests=int(self._is_entered))


class Admission:
    """Bounds how many requests are in progress, and how many bytes their bodies take together.

    Attributes:
      is_ready: whether health checks ask for more requests. Requests that arrive anyway are served.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.is_ready = True
        self._settings = settings
        self._metrics = metrics
        self._requests = 0
        self._bytes = 0

    @contextmanager
    def place(self, expected_wait: float) -> Iterator[Place]:
        """Gives a request a `Place`, and frees it at the end of the block.

        Args:
          expected_wait: seconds until a request would be answered, for the message.

        Raises:
          HTTPException: 503, all places are taken, so that the body need not be read.
        """
        self._check_room(expected_wait)
        place = Place(self)
        try:
            yield place
        finally:
            place.release()

    def enter(self, expected_wait: float) -> None:
        """Counts a request in.

        Raises:
          HTTPException: 503, all places are taken.
        """
        self._check_room(expected_wait)
        self._requests += 1

    def hold(self, size: int) -> None:
        """Reserves `size` bytes for a part of a body.

        Raises:
          HTTPException: 503, there is not enough memory.
        """
        if self._bytes + size > self._settings.max_buffer_bytes:
            self._metrics.shed.labels("bytes").inc()
            raise errors.busy(1)
        self._bytes += size

    def release(self, size: int, *, requests: int) -> None:
        """Frees `size` bytes and the places of so many requests."""
        self._bytes -= size
        self._requests -= requests

    def _check_room(self, expected_wait: float) -> None:
        if self._requests >= self._settings.max_requests:
            self._metrics.shed.labels("requests").inc()
            raise errors.busy(expected_wait)
