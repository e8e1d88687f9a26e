"""Connections that bound what comes before a request is one: the head's size and the time for it."""

import asyncio
import signal
import threading

import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.settings import Settings

_MAX_HEAD_BYTES = 64 * 1024


def uvicorn_server() -> uvicorn.Server | None:
    """The server that this application runs in, by the handler that it has installed for SIGTERM; None in others."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    is_main = threading.current_thread() is threading.main_thread()
    return server if is_main and isinstance(server, uvicorn.Server) else None


def guard(server: uvicorn.Server, settings: Settings) -> None:
    """Has a server, which does not listen yet, accept connections of this kind.

    uvicorn with httptools keeps the head of a request in memory however long it grows, and waits for its end for ever.
    """
    if server.config.http_protocol_class is HttpToolsProtocol:
        name = GuardedConnection.__name__
        server.config.http_protocol_class = type(name, (GuardedConnection,), {"head_seconds": settings.read_seconds})


class GuardedConnection(HttpToolsProtocol):
    """Closes itself when the line and the headers of a request are too long or too slow."""

    head_seconds = 30

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._head_bytes: int | None = 0
        self._head_timer = self.loop.call_later(self.head_seconds, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to a head that has not come to its end."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The headers are longer than {_MAX_HEAD_BYTES} bytes.")

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no request in JSON, as everything is refused; uvicorn would in plain text."""
        answer = JSONResponse({"error": msg}, 400, {"connection": "close"})
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(each) for each in headers), b"", bytes(answer.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

    def on_message_begin(self) -> None:
        """Begins to wait for the end of the head."""
        super().on_message_begin()
        self._head_bytes = 0
        self._head_timer.cancel()
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_bytes = None
        self._head_timer.cancel()
        super().on_headers_complete()
