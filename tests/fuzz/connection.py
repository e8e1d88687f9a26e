"""A connection of the server without a network: what it answers to bytes that arrive in any pieces."""

import asyncio
import re
from collections.abc import Sequence

import uvicorn
from uvicorn.server import ServerState

from server.connection import GuardedConnection

MAX_BODY_BYTES = 10_000
STATUSES = (200, 400, 408, 413, 431, 501)
HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[!-9;-~]+: [^\r\n]*\r\n)+)\r\n")
LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.MULTILINE | re.IGNORECASE)
WITHOUT_CONTENT = re.compile(rb"^x-method: HEAD\r$", re.MULTILINE)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._is_closing = self._has_ended = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 1)}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes) -> None:
        assert not self._is_closing
        assert not self._has_ended
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._has_ended = True

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answer(scope, receive, send) -> None:
    """An application that reads the whole body, and answers with what it has understood."""
    size, is_complete = 0, False
    while not is_complete and size <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
    content = f"{scope['method']} {scope['path']} {len(scope['headers'])} {size}".encode("utf-8", "surrogateescape")
    headers = [(b"content-length", str(len(content)).encode()), (b"x-method", scope["method"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


LOOP = asyncio.new_event_loop()
CONFIG = uvicorn.Config(answer, lifespan="off", log_config=None, access_log=False, ws="none")
CONFIG.load()


def talk(pieces: Sequence[bytes], *, one_by_one: bool = False) -> list[tuple[int, bytes]]:
    """Returns the status and the content of each response to bytes that a client sends before it leaves.

    Args:
      pieces: what arrives, one after the other.
      one_by_one: whether the application runs after each piece; otherwise after all of them.
    """
    return LOOP.run_until_complete(_talk(pieces, one_by_one))


async def _talk(pieces: Sequence[bytes], one_by_one: bool) -> list[tuple[int, bytes]]:
    state, transport = ServerState(), Transport()
    connection = GuardedConnection(config=CONFIG, server_state=state, app_state={}, _loop=LOOP)
    connection.connection_made(transport)
    # Receive the pieces, then let the application run until nothing happens any more.
    for piece in pieces:
        if not transport.is_closing():
            connection.data_received(piece)
            if one_by_one:
                await _settle(state, transport)
    await _settle(state, transport)
    # The client leaves.
    connection.connection_lost(None)
    await _settle(state, transport)
    assert not state.tasks
    return parse_responses(transport.written)


async def _settle(state: ServerState, transport: Transport) -> None:
    before = None
    while before != (len(transport.written), len(state.tasks)):
        before = len(transport.written), len(state.tasks)
        for _ in range(5):
            await asyncio.sleep(0)


def parse_responses(written: bytes) -> list[tuple[int, bytes]]:
    """Returns status and content of all responses; they have to be complete and valid."""
    found = []
    while written:
        if written.startswith(CONTINUE):
            written = written.removeprefix(CONTINUE)
            continue
        head = HEAD.match(written)
        assert head, written
        status, length = int(head[1]), LENGTH.search(head[2])
        assert status in STATUSES, written
        assert length, written
        end = head.end() + (0 if WITHOUT_CONTENT.search(head[2]) else int(length[1]))
        assert len(written) >= end, written
        found.append((status, written[head.end() : end]))
        written = written[end:]
    return found
