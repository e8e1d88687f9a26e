"""Admission control: bounds the requests to each model and the bytes of all bodies, and says whether to send more."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from server import errors
from server.metrics import Metrics, ModelMetrics
from server.settings import Settings
from server.shares import Claim, Shares

# Bodies up to this part of the buffer may fill it; larger ones leave the other part free.
_SMALL_PART = 64
_SPARE_PART = 8

# Files that are sent at once. Each takes a chunk of memory.
_MAX_DOWNLOADS = 16


class Place:
    """What one request occupies: memory for its body as it arrives, then a place in the queue."""

    def __init__(self, places: "Places", client: str, expected_wait: Callable[[str], float]) -> None:
        self.client = client
        self._places = places
        self._expected_wait = expected_wait
        self._body = Claim(client)
        self._body.is_moving = True
        self._turn = Claim(client)

    @property
    def is_evicted(self) -> bool:
        """Whether others needed what this request occupied."""
        return self._body.is_evicted or self._turn.is_evicted

    def allow_eviction(self, evict: Callable[[], None] | None) -> None:
        """Sets what ends this request if others need what it occupies; None if it can no longer be ended."""
        self._body.evict = self._turn.evict = evict

    def hold(self, size: int) -> None:
        """Reserves memory for a body of `size` bytes so far.

        Raises:
          HTTPException: 503, there is not enough memory.
        """
        self._body.move(size - self._body.amount)
        if not self._places.admission.hold(self._body, size):
            raise self._places.shed("bytes", 1)

    def enter(self) -> None:
        """Takes a place in the queue. Call it once the body is complete, so that slow clients keep nobody out.

        Raises:
          HTTPException: 503, all places are taken.
        """
        self._body.is_moving = False
        if not self._places.requests.take(self._turn, 1):
            raise self._places.shed("requests", self._expected_wait(self.client))

    def evicted(self) -> HTTPException:
        """Returns the 503 of a request that was evicted; the rest of its body is not read."""
        error = self._places.shed("evicted", 1)
        return HTTPException(503, error.detail, {**(error.headers or {}), "Connection": "close"})

    def release(self) -> None:
        """Frees the memory and the place in the queue."""
        self._places.admission.buffer.release(self._body)
        self._places.requests.release(self._turn)


class Admission:
    """What all models share: bounds how many bytes the bodies take together, and how many files are sent.

    Attributes:
      is_ready: whether health checks ask for more requests. Requests that arrive anyway are served.
      buffer: the bytes of bodies.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.is_ready = True
        self._metrics = metrics
        self.buffer = Shares(settings.max_buffer_bytes)
        self._downloads = Shares(_MAX_DOWNLOADS)
        self._small_bytes = settings.max_buffer_bytes // _SMALL_PART
        self._spare_bytes = min(
            settings.max_buffer_bytes // _SPARE_PART, settings.max_buffer_bytes - settings.max_body_bytes
        )

    @contextmanager
    def download(self, client: str) -> Iterator[Claim]:
        """Gives a download its claim, and frees it at the end of the block.

        Raises:
          HTTPException: 503, enough files are being sent.
        """
        claim = Claim(client)
        claim.is_moving = True
        if not self._downloads.take(claim, 1):
            self._metrics.shed_download()
            raise errors.busy(1)
        try:
            yield claim
        finally:
            self._downloads.release(claim)

    def hold(self, claim: Claim, size: int) -> bool:
        """Reserves memory for a body that has `size` bytes so far, and returns whether there was enough."""
        spare = self._spare_bytes if size > self._small_bytes else 0
        return size <= claim.amount or self.buffer.take(claim, size - claim.amount, spare=spare)


class Places:
    """The places for requests to one model.

    Attributes:
      admission: what it shares with other models.
      requests: the places themselves.
    """

    def __init__(self, admission: Admission, settings: Settings, metrics: ModelMetrics) -> None:
        self.admission = admission
        self.requests = Shares(settings.max_requests)
        self._metrics = metrics

    @contextmanager
    def place(self, client: str, expected_wait: Callable[[str], float]) -> Iterator[Place]:
        """Gives a request a `Place`, and frees it at the end of the block.

        Args:
          client: who sent the request.
          expected_wait: returns the seconds until a request of a client would be answered, for the message.

        Raises:
          HTTPException: 503, all places are taken, so that the body need not be read.
        """
        if not self.requests.would_take(client, 1):
            raise self.shed("requests", expected_wait(client))
        place = Place(self, client, expected_wait)
        try:
            yield place
        finally:
            place.release()

    def shed(self, reason: str, wait: float) -> HTTPException:
        """Counts a refused request, and returns its 503.

        Args:
          reason: why, a value of the metric's label.
          wait: seconds after which the client may try again.
        """
        self._metrics.shed(reason)
        return errors.busy(wait)
