"""Bodies in whatever pieces they arrive."""

import asyncio
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from server import body, errors
from server.settings import Settings
from tests.server.virtual_time import run_virtually

MAX_BYTES = 1024
LIMITS = Settings(max_body_bytes=MAX_BYTES)
PIECES = st.lists(st.binary(max_size=200), min_size=1, max_size=8)
"""Some are empty, as in chunked bodies."""


class Place:
    """Records what memory a body takes, and what ends it."""

    def __init__(self, room: int = MAX_BYTES) -> None:
        self.is_evicted = False
        self.evict = None
        self.held: list[int] = []
        self._room = room

    def hold(self, size: int) -> None:
        self.held.append(size)
        if size > self._room:
            raise errors.busy(1)

    def allow_eviction(self, evict) -> None:
        self.evict = evict

    def evicted(self) -> HTTPException:
        return errors.busy(1)


class Messages:
    """The messages of the ASGI server, and how many were taken; a message that is a function is called first."""

    def __init__(self, messages: list) -> None:
        self._messages = messages
        self.taken = 0

    async def __call__(self) -> dict[str, object]:
        await asyncio.sleep(0)
        if self.taken == len(self._messages):
            await asyncio.Event().wait()
        self.taken += 1
        message = self._messages[self.taken - 1]
        return message() if callable(message) else message


def part(data: bytes, *, is_last: bool = False) -> dict[str, object]:
    """A message with some of the body; servers may leave out what has a default."""
    return {"type": "http.request", **({"body": data} if data else {}), **({} if is_last else {"more_body": True})}


def parts(pieces: list[bytes]) -> list[dict[str, object]]:
    return [part(piece, is_last=place == len(pieces) - 1) for place, piece in enumerate(pieces)]


def read(messages: Messages, place: Place, limits: Settings = LIMITS, **headers: str) -> bytes:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "headers": raw}, messages)
    try:
        return asyncio.run(body.read(request, place, limits))
    finally:
        assert place.evict is None


@given(pieces=PIECES)
def test_a_body_is_the_same_in_any_pieces(pieces):
    whole, messages, place = b"".join(pieces), Messages(parts(pieces)), Place()
    if len(whole) <= MAX_BYTES:
        assert read(messages, place) == whole
        assert messages.taken == len(pieces)
        assert place.held == [sum(map(len, pieces[:count])) for count in range(1, len(pieces) + 1)]


def test_many_small_pieces_take_no_more_memory_than_their_bytes():
    count, places = 20_000, []

    class Measured(Place):
        def hold(self, size: int) -> None:
            if size == 2 * count:
                places.append(tracemalloc.get_traced_memory()[0] - before)

    # Pieces of one byte are always the same object.
    messages = Messages([lambda: part(b"%02x" % (messages.taken % 256)) for _ in range(count)])
    messages._messages[-1] = part(b"ab", is_last=True)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert len(read(messages, Measured(), Settings())) == 2 * count
    finally:
        tracemalloc.stop()
    assert places[0] < 200_000  # A list of the pieces takes a megabyte.


@given(before=PIECES, after=PIECES, excess=st.integers(1, 300))
def test_a_body_is_refused_with_the_first_piece_too_many(before, after, excess):
    room = max(MAX_BYTES - sum(map(len, before)), 0)
    messages, place = Messages(parts([*before, bytes(room + excess), *after])), Place()
    with pytest.raises(HTTPException) as caught:
        read(messages, place)
    assert caught.value.status_code == 413
    sizes = [sum(map(len, before[:count])) for count in range(1, len(before) + 1)]
    assert messages.taken == 1 + sum(size <= MAX_BYTES for size in sizes)
    assert place.held == [size for size in sizes if size <= MAX_BYTES]


@given(pieces=PIECES, room=st.integers(0, 500))
def test_memory_is_taken_for_what_has_arrived(pieces, room):
    messages, place = Messages(parts(pieces)), Place(room)
    whole = b"".join(pieces)
    if len(whole) <= room:
        assert read(messages, place) == whole
    else:
        with pytest.raises(HTTPException) as caught:
            read(messages, place)
        assert caught.value.status_code in (413, 503)
        assert all(size <= room for size in place.held[:-1])


@given(pieces=PIECES, declared=st.integers(0, 2 * MAX_BYTES))
@example(pieces=[b"a"], declared=MAX_BYTES)
@example(pieces=[b"a"], declared=MAX_BYTES + 1)
def test_a_declared_length_is_only_compared_with_the_limit(pieces, declared):
    messages, place = Messages(parts(pieces)), Place()
    if declared > MAX_BYTES:
        with pytest.raises(HTTPException) as caught:
            read(messages, place, content_length=str(declared))
        assert (caught.value.status_code, messages.taken, place.held) == (413, 0, [])
        assert caught.value.detail == "The body is too large: send at most 1024 bytes."
    elif sum(map(len, pieces)) <= MAX_BYTES:
        assert read(messages, place, content_length=str(declared)) == b"".join(pieces)


@given(pieces=st.lists(st.binary(max_size=100), max_size=5))
def test_a_client_may_leave_after_any_piece(pieces):
    messages = Messages([*(part(piece) for piece in pieces), {"type": "http.disconnect"}])
    with pytest.raises(ClientDisconnect):
        read(messages, Place())
    assert messages.taken == len(pieces) + 1


@given(pieces=PIECES, count=st.integers(0, 7))
def test_a_body_may_be_evicted_at_any_piece(pieces, count):
    place, count = Place(), min(count, len(pieces) - 1)

    def evict() -> dict[str, object]:
        place.is_evicted = True
        place.evict()
        return part(pieces[count])

    messages = Messages([*(part(piece) for piece in pieces[:count]), evict])
    with pytest.raises(HTTPException) as caught:
        read(messages, place)
    assert caught.value.status_code == 503
    assert len(place.held) == count


def test_a_body_that_is_waited_for_may_be_evicted():
    async def main() -> None:
        loop, place = asyncio.get_running_loop(), Place()
        start = loop.time()

        def evict() -> None:
            place.is_evicted = True
            place.evict()

        async def receive() -> dict[str, object]:
            loop.call_later(1, evict)
            await asyncio.Event().wait()
            return part(b"late")

        with pytest.raises(HTTPException) as caught:
            await body.read(Request({"type": "http", "method": "POST", "headers": []}, receive), place, LIMITS)
        assert (caught.value.status_code, loop.time() - start) == (503, 1)

    run_virtually(main())


def test_a_body_that_stops_is_too_slow():
    with pytest.raises(HTTPException) as caught:
        read(Messages([part(b"start")]), Place(), Settings(max_body_bytes=MAX_BYTES, read_seconds=1))
    assert (caught.value.status_code, caught.value.headers) == (408, {"Connection": "close"})


@pytest.mark.parametrize(
    ("arrivals", "end"),
    [
        ([], 5),
        ([(4, 0)], 5),
        ([(1, 1000)], 15),
        ([(1, 1000), (14, 500)], 20),
        ([(1, 1000), (14, 500), (19, 1500)], 30),
    ],
    ids=["nothing", "an empty piece", "a piece", "two pieces", "for as long as a body may take"],
)
def test_a_body_has_the_time_of_the_lowest_rate(arrivals, end):
    limits = Settings(max_body_bytes=10_000, read_seconds=30, min_bytes_per_second=100)

    async def main() -> None:
        loop, waiting = asyncio.get_running_loop(), iter(arrivals)
        start = loop.time()

        async def receive() -> dict[str, object]:
            seconds, size = next(waiting, (1000, 0))
            await asyncio.sleep(start + seconds - loop.time())
            return part(bytes(size))

        with pytest.raises(HTTPException) as caught:
            await body.read(Request({"type": "http", "method": "POST", "headers": []}, receive), Place(10_000), limits)
        assert caught.value.status_code == 408
        assert caught.value.detail.startswith("The body did not arrive within 30 s, or at 100 bytes per second: ")
        assert round(loop.time() - start, 3) == end

    run_virtually(main())


@pytest.mark.parametrize("encoding", ["br", "gzip, deflate", "x"])
def test_an_unknown_encoding_is_refused_before_the_body_is_read(encoding):
    messages = Messages([part(b"start")])
    with pytest.raises(HTTPException) as caught:
        read(messages, Place(), content_encoding=encoding)
    assert (caught.value.status_code, messages.taken) == (415, 0)
    assert body.encoding_of(SimpleNamespace(headers={"content-encoding": " GZip "})) == "gzip"
