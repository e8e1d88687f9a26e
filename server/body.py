"""Reads the body of a request, within limits of size and time."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from server.admission import Place
from server.protocols.compression import ENCODINGS, IDENTITY
from server.settings import Settings

# A body may begin as slowly as it likes.
_GRACE_SECONDS = 5


async def read(request: Request, place: Place, limits: Settings) -> bytes:
    """Reads the whole body, and stops as soon as it is known to be too large.

    Raises:
      HTTPException: 408 too slow, 413 too large, 415 compressed in an unknown way, 503 no memory for it, or others need
        the memory more.
      ClientDisconnect: the client is gone.
    """
    headers = request.headers
    if encoding_of(request) not in ENCODINGS:
        raise HTTPException(415, "This Content-Encoding is not supported: use gzip, deflate or none at all.")
    if int(headers.get("content-length", "0")) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.read_seconds) as timer:
            place.allow_eviction(lambda: end_at(timer, 0))
            return await _receive(request, place, limits, timer)
    except TimeoutError:
        if place.is_evicted:
            raise place.evicted() from None
        raise HTTPException(
            408,
            f"The body did not arrive within {limits.read_seconds} s, or at {limits.min_bytes_per_second} bytes per"
            " second: send it faster, or send a smaller one.",
            headers={"Connection": "close"},
        ) from None
    finally:
        place.allow_eviction(None)


def encoding_of(request: Request) -> str:
    """Returns how the body is compressed."""
    return request.headers.get("content-encoding", IDENTITY).strip().lower()


async def _receive(request: Request, place: Place, limits: Settings, timer: asyncio.Timeout) -> bytes:
    start = asyncio.get_running_loop().time()
    # Not a list of chunks: an object for each takes 50 bytes, and a chunk may have two.
    content = bytearray()
    while True:
        # Wait no longer than the lowest rate allows.
        seconds = min(limits.read_seconds, _GRACE_SECONDS + len(content) / limits.min_bytes_per_second)
        end_at(timer, start + seconds)
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if place.is_evicted:
            raise TimeoutError
        chunk = message.get("body", b"")
        size = len(content) + len(chunk)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        # Reserve memory for what has arrived, not for Content-Length: declaring a large body costs a client nothing,
        # and would keep others out.
        place.hold(size)
        is_last = not message.get("more_body", False)
        if is_last and not content:
            return chunk  # type: ignore[no-any-return]
        content += chunk
        if is_last:
            return bytes(content)


def end_at(timer: asyncio.Timeout, when: float) -> None:
    """Moves the end of a wait to a time of the event loop, unless it is over."""
    if not timer.expired():
        timer.reschedule(when)


def _too_large(limits: Settings) -> HTTPException:
    return HTTPException(413, f"The body is too large: send at most {limits.max_body_bytes} bytes.")
