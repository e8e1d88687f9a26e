"""Clients that are slow, malformed, hostile, or gone. No response to them may be an error of the server."""

import asyncio
import base64
import contextlib
import gzip
import json
from collections.abc import Awaitable, Callable
from random import Random

from tests.server.wire import encode
from tests.soak.good import BROKEN
from tests.soak.record import Record
from tests.soak.services import Service
from tests.soak.wire import Connection, Response, connected, get, post

_LARGEST_BODY = 10 * 2**20
# Made beforehand, so that nobody waits for that.
_GZIP_BOMB = gzip.compress(bytes(50_000_000))
_PICTURE_BOMBS = [encode((0, 0, 0), "WEBP", (side, side)) for side in (2500, 3200, 5000)]
_HEALTH = get("/healthz")
_START = b"POST /predict HTTP/1.1\r\nHost: soak\r\nContent-Type: image/png\r\n"


class Visit:
    """One visit of a bad client to a service."""

    def __init__(self, service: Service, address: str, record: Record, random: Random) -> None:
        self.service = service
        self.random = random
        self._address = address
        self._record = record

    def connected(self, **options: int) -> contextlib.AbstractAsyncContextManager[Connection]:
        """Connects to the service."""
        return connected(self.service.port, self._address, **options)

    async def expect(self, connection: Connection, *statuses: int) -> Response:
        """Reads a response, whose status has to be one of these, or 503."""
        response = await connection.read()
        self._record.counts[f"bad {response.status}"] += 1
        if response.status not in (*statuses, 503):
            self._record.fault(f"{self.service.name}: {response.status} {response.body[:200]!r}, not {statuses}")
        return response


async def send_slow_body(visit: Visit) -> None:
    """Sends a body byte by byte."""
    async with visit.connected() as connection:
        await connection.send(_START + b"Content-Length: 100000\r\n\r\n")
        trickle = asyncio.create_task(_trickle(connection))
        try:
            await visit.expect(connection, 408)
        finally:
            trickle.cancel()


async def _trickle(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        while True:
            await connection.send(b"x")
            await asyncio.sleep(0.5)


async def send_slow_head(visit: Visit) -> None:
    """Never ends its headers."""
    async with visit.connected() as connection:
        for _ in range(visit.random.randint(1, 40)):
            await connection.send(b"GET / HTTP/1.1\r\nHost: soak\r\nX-Slow: ")
            await asyncio.sleep(0.25)


async def send_half(visit: Visit) -> None:
    """Leaves in the middle of its request."""
    request = post("/predict", encode((250, 0, 0)), "image/png")
    async with visit.connected() as connection:
        await connection.send(request[: visit.random.randrange(len(request))])
        await asyncio.sleep(visit.random.random())


async def leave_early(visit: Visit) -> None:
    """Leaves before the response, with another request under way."""
    request = post("/models/colours/predict", encode((250, 0, 0)), "image/png")
    async with visit.connected() as connection:
        await connection.send(request * visit.random.randint(1, 20))
        await asyncio.sleep(visit.random.random() / 50)


async def send_oversize(visit: Visit) -> None:
    """Sends more than a body may have, declared or in chunks."""
    async with visit.connected() as connection:
        if visit.random.random() < 0.5:
            await connection.send(_START + b"Content-Length: %d\r\n\r\n" % (_LARGEST_BODY + 1))
        else:
            await connection.send(_START + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(_LARGEST_BODY // 2**20 + 1):
                await connection.send(b"100000\r\n" + bytes(2**20) + b"\r\n")
        # On a busy machine this client may be too slow.
        await visit.expect(connection, 408, 413)


async def send_gzip_bomb(visit: Visit) -> None:
    """Sends a small body that would be a large one."""
    async with visit.connected() as connection:
        await connection.send(post("/predict", _GZIP_BOMB, "application/json", "Content-Encoding: gzip"))
        await visit.expect(connection, 413)


async def send_picture_bomb(visit: Visit) -> None:
    """Sends a few bytes that are large pictures."""
    picture = visit.random.choice(_PICTURE_BOMBS)
    images = [base64.b64encode(picture).decode()] * visit.random.randint(1, 8)
    async with visit.connected() as connection:
        await connection.send(post("/predict", json.dumps({"images": images}).encode(), "application/json"))
        await visit.expect(connection, 200, 400, 413, 504)


async def pipeline_and_fail(visit: Visit) -> None:
    """Sends many requests at once, of which the last is invalid: the others are answered first."""
    invalid = visit.random.choice(
        [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n"]
    )
    count = visit.random.randint(1, 100)
    async with visit.connected() as connection:
        await connection.send(_HEALTH * count + invalid)
        for _ in range(count):
            if (await visit.expect(connection, 200)).is_last:
                return
        await visit.expect(connection, 400)


async def download_without_reading(visit: Visit) -> None:
    """Asks for the model file, reads a little, and waits."""
    async with visit.connected(receive_bytes=4096) as connection:
        await connection.send(get("/model.onnx"))
        await asyncio.sleep(visit.random.uniform(1, 30))


async def send_noise(visit: Visit) -> None:
    """Changes some bytes of a request."""
    data = bytearray(post("/predict", encode((250, 0, 0)), "image/png") + _HEALTH)
    for _ in range(visit.random.randint(1, 10)):
        data[visit.random.randrange(len(data))] = visit.random.randrange(256)
    async with visit.connected() as connection, asyncio.timeout(5):
        await connection.send(bytes(data))
        while not (await visit.expect(connection, 200, 400, 404, 405, 408, 411, 413, 415, 501)).is_last:
            pass


async def stay_idle(visit: Visit) -> None:
    """Connects and says nothing."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(visit.connected())
        await asyncio.sleep(visit.random.uniform(1, 30))


KINDS: list[Callable[[Visit], Awaitable[None]]] = [
    *(send_slow_body, send_slow_head, send_half, leave_early, send_oversize, send_gzip_bomb, send_picture_bomb),
    *(pipeline_and_fail, download_without_reading, send_noise, stay_idle),
]


async def misbehave(
    kind: Callable[[Visit], Awaitable[None]], address: str, services: list[Service], record: Record, random: Random
) -> None:
    """Visits one service after the other, until cancelled; what the server does to such connections is its affair."""
    while True:
        visit = Visit(random.choice(services), address, record, random)
        record.counts[kind.__name__] += 1  # A visit may last longer than the phase.
        try:
            async with asyncio.timeout(record.patience):
                await kind(visit)
        except (*BROKEN, asyncio.LimitOverrunError):
            record.counts[f"{kind.__name__} broken"] += 1
        await asyncio.sleep(random.uniform(0.2, 2))
