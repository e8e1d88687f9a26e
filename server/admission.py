"""Who is let in: places for requests, memory for their bodies, and whether new ones are wanted at all."""

from collections.abc import Iterator
from contextlib import contextmanager

from server import errors
from server.metrics import Metrics
from server.settings import Settings


class Place:
    """One request's place: memory for its body, as that comes, and then a place among those that wait."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._bytes = 0
        self._is_entered = False

    def hold(self, size: int) -> None:
        """Makes sure of room for a body of this size.

        Raises:
            HTTPException: 503, there is none.
        """
        if size > self._bytes:
            self._admission.hold(size - self._bytes)
            self._bytes = size

    def enter(self, expected_wait: float) -> None:
        """Takes a place among the requests that wait, now that the body is there: slow clients keep nobody out.

        Raises:
            HTTPException: 503, all are taken.
        """
        self._admission.enter(expected_wait)
        self._is_entered = True

    def release(self) -> None:
        """Gives everything back."""
        self._admission.release(self._bytes, requests=int(self._is_entered))


class Admission:
    """Bounds how many requests, and how many bytes of them, are inside.

    Attributes:
        is_ready: whether new requests are wanted; those that come all the same are served.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.is_ready = True
        self._settings = settings
        self._metrics = metrics
        self._requests = 0
        self._bytes = 0

    @contextmanager
    def place(self, expected_wait: float) -> Iterator[Place]:
        """Gives a request what it takes until the end of the block.

        Args:
            expected_wait: seconds until a request would be answered, for the message.

        Raises:
            HTTPException: 503, all places are taken, and the body need not be read.
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
        """Takes memory for a part of a body.

        Raises:
            HTTPException: 503, it is all taken.
        """
        if self._bytes + size > self._settings.max_buffer_bytes:
            self._metrics.shed.labels("bytes").inc()
            raise errors.busy(1)
        self._bytes += size

    def release(self, size: int, *, requests: int) -> None:
        """Gives memory and places back."""
        self._bytes -= size
        self._requests -= requests

    def _check_room(self, expected_wait: float) -> None:
        if self._requests >= self._settings.max_requests:
            self._metrics.shed.labels("requests").inc()
            raise errors.busy(expected_wait)
