"""Connections that bound what a client may send, and how long it may take, outside of a request in work."""

import asyncio
import signal
import threading

import httptools
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.settings import Settings

_MAX_HEAD_BYTES = 64 * 1024

# Requests that are parsed while one before them is in work. What was read beyond waits as it came: 256 KB may be 10,000
# requests, which take 25 MB when they are parsed.
_MAX_WAITING = 16
_PIECE_BYTES = 4096


def uvicorn_server() -> uvicorn.Server | None:
    """The server that this application runs in, by the handler that it has installed for SIGTERM; None in others."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    is_main = threading.current_thread() is threading.main_thread()
    return server if is_main and isinstance(server, uvicorn.Server) else None


def guard(server: uvicorn.Server, settings: Settings) -> None:
    """Has a server, which does not listen yet, accept connections of this kind.

    uvicorn with httptools keeps the head of a request in memory however long it grows, waits for its end for ever, and
    for the next one too where anything came after an answer. It takes what follows a chunked body for headers as well.
    """
    if server.config.http_protocol_class is HttpToolsProtocol:
        name = GuardedConnection.__name__
        server.config.http_protocol_class = type(name, (GuardedConnection,), {"read_seconds": settings.read_seconds})


class _Flow(FlowControl):
    """Reads from a connection only when all that was read is parsed."""

    def __init__(self, transport: asyncio.Transport, connection: "GuardedConnection") -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        """Reads on, unless there is enough."""
        if not self._connection.has_unread:
            super().resume_reading()


class GuardedConnection(HttpToolsProtocol):
    """Closes itself when a head is too long or too slow, no request is in work and none comes, or nobody reads.

    It declines every Upgrade: RFC 9110 lets a server go on as if there were none. httptools takes what follows such a
    head for another protocol, though it may be the body, and would parse that as the next request.
    """

    read_seconds = 30

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # To hear of the first byte that the client does not read.
        self._head_bytes: int | None = 0
        self._is_in_head = False
        self._unread = memoryview(b"")
        self.flow = _Flow(transport, self)
        self._timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._stop_waiting()
        self._stop_waiting_for_reader()
        self._unread = memoryview(b"")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begins to wait for the client to read: an answer that nobody takes would be kept for ever."""
        super().pause_writing()
        self._stop_waiting_for_reader()
        self._reader_timer = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Takes what came.

        uvicorn's own would end the wait for the next request at any data, be it only an empty line.
        """
        self._unread = memoryview(bytes(self._unread) + data)
        self._read_on()

    def on_response_complete(self) -> None:
        """There is room for another request."""
        super().on_response_complete()
        if self._unread:
            self._read_on()
            self.flow.resume_reading()

    def on_message_begin(self) -> None:
        """Begins to wait for the end of the head."""
        super().on_message_begin()
        self._head_bytes = 0
        self._is_in_head = True
        self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header, but none after the body: a proxy before this one has not looked at those."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there, unless it has to be parsed again."""
        if self.parser.should_upgrade():
            return
        self._head_bytes = None
        self._is_in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Counts what follows as is done with a head, until there is some of the body: it may be the end."""
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Waits for the end of a body that is answered already, as long as for one that is read."""
        self._head_bytes = None
        super().on_body(body)
        if self.cycle.response_complete and self._timer is None:
            self._wait()

    def on_message_complete(self) -> None:
        """Begins to wait for the next request where the answer was there first; uvicorn does where it was not."""
        if self.parser.should_upgrade():
            return
        self._head_bytes = None
        super().on_message_complete()
        if self.cycle.response_complete:
            self._stop_waiting()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    @property
    def has_unread(self) -> bool:
        """Whether there is something that waits to be parsed."""
        return len(self._unread) > 0

    def _read_on(self) -> None:
        """Parses for as long as there is room, and counts what belongs to a head that has not come to its end."""
        while self._unread and len(self.pipeline) < _MAX_WAITING and not self.transport.is_closing():
            piece, self._unread = self._unread[:_PIECE_BYTES], self._unread[_PIECE_BYTES:]
            try:
                self._parse(piece)
            except httptools.HttpParserError:
                text = "Invalid HTTP request received."
                self.logger.warning(text)
                self._refuse(400, text)
            if self._head_bytes is not None:
                self._head_bytes += len(piece)  # What came before it in its first piece too: that is little.
                if self._head_bytes > _MAX_HEAD_BYTES:
                    self._refuse(400, f"The headers are longer than {_MAX_HEAD_BYTES} bytes.")

    def _parse(self, rest: memoryview) -> None:
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":  # It is one without any header.
                    self._refuse(400, "This server is no proxy: it does not take the method CONNECT.")
                    return
                rest = rest[upgrade.args[0] :]
            self._parse_without_upgrade()

    def _parse_without_upgrade(self) -> None:
        """Parses the last head again. With a parser of its own: the last one may hold the connection to be over."""
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%s: %s" % each for each in self.headers if each[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn's is.
        self.parser.feed_data(b"\r\n".join([line, *headers, b"", b""]))

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.read_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        self._unset_keepalive_if_required()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_waiting_for_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # An answer goes first; uvicorn waits anew after it.
        if self._is_in_head:
            self._refuse(408, f"The headers did not arrive within {self.read_seconds} seconds: send them faster.")
        else:  # There is no question to answer: browsers connect in advance.
            self.transport.close()

    def _refuse(self, status: int, text: str) -> None:
        """Answers in JSON, as everything is refused, and closes; uvicorn would in plain text."""
        if self.transport.is_closing():
            return
        answer = JSONResponse({"error": text}, status, {"connection": "close"})
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = [STATUS_LINE[status].rstrip(), *(b": ".join(each) for each in headers), b"", bytes(answer.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
