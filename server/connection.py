"""Connections that bound what a client may send, and how long it may take, outside of a request in progress."""

import asyncio
import re
import signal
import threading
from collections.abc import Sequence

import httptools
import uvicorn
from starlette.responses import JSONResponse
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server.errors import StartError
from server.settings import Settings

_MAX_HEAD_BYTES = 64 * 1024

# Path and query. The event loop would take 40 ms for the parameters of a query of 64 KB.
_MAX_TARGET_BYTES = 8 * 1024

# Headers of a few bytes take 20 times as much once they are parsed. Other servers accept about a hundred headers.
_MAX_HEADERS = 128

# Pipelined requests, and their bytes, that are parsed while one before them is in progress. Further bytes wait
# unparsed: 256 KB may be 10,000 requests, which take 25 MB once they are parsed.
_MAX_WAITING = 16
_MAX_WAITING_BYTES = 64 * 1024
_PIECE_BYTES = 4096

# What may stand in a Host header: a name or an address, and a port.
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")

# For how long a connection without a request stays open when the server shuts down: one may be under way.
_LAST_SECONDS = 0.2

# How old a connection without any request is when it is closed then: its client is about to send the first.
_NEW_SECONDS = 2


def uvicorn_server() -> uvicorn.Server:
    """Returns the uvicorn server that runs this application.

    uvicorn has no public access to it, but its SIGTERM handler is a method of it.

    Raises:
      StartError: the application runs in another ASGI server, or not in the main thread.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not isinstance(server, uvicorn.Server):
        raise StartError(
            "This application bounds the connections of uvicorn, and no others: run it as `uvicorn server.app:app`, in"
            " the main thread of its process."
        )
    return server


def install(server: uvicorn.Server, settings: Settings) -> None:
    """Makes a server that does not listen yet use `GuardedConnection`.

    uvicorn with httptools keeps request headers of any length in memory and waits for their end without limit, and for
    the next request too, once any byte has followed a response. It also takes the trailers of a chunked body for
    headers.

    Raises:
      StartError: the server parses HTTP with something other than httptools.
    """
    if server.config.http_protocol_class is not HttpToolsProtocol:
        raise StartError(
            "This application bounds the connections of uvicorn with httptools, and no others: install httptools, and"
            " run uvicorn without --http or with `--http httptools`."
        )
    name = GuardedConnection.__name__
    server.config.http_protocol_class = type(
        name,
        (GuardedConnection,),
        {"read_seconds": settings.read_seconds, "min_bytes_per_second": settings.min_bytes_per_second},
    )


def find_fault(version: str, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
    """Checks a head for what another server on the way may understand differently, as RFC 9112 demands.

    Returns:
      The status and the message of the error; None if there is no fault.
    """
    is_old = version in ("0.9", "1.0")
    # Exactly one Host, which chooses the site.
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and not is_old):
        return 400, f"The request has {len(hosts)} Host headers: send exactly one."
    if hosts and not _HOST.fullmatch(hosts[0]):
        return 400, "The Host header is invalid: send the name or address of the server."
    # No coding but chunks: bodies in another would be read as if they were plain.
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and is_old:
        return 400, f"HTTP/{version} has no Transfer-Encoding: send Content-Length instead."
    if codings not in ([], [b"chunked"]):
        return 501, "This Transfer-Encoding is not supported: send the body as chunked, or with Content-Length."
    return None


class _RefusedError(Exception):
    """Ends the parsing of a request that has been refused."""


class _Flow(FlowControl):
    """Flow control that resumes reading only once all that was read has been parsed."""

    def __init__(self, transport: asyncio.Transport, connection: "GuardedConnection") -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        """Resumes reading, unless there are bytes to parse."""
        if not self._connection.has_unparsed:
            super().resume_reading()


class _Transport(asyncio.Transport):
    """What a connection gives uvicorn to write to and to close: closing is up to the connection."""

    def __init__(self, transport: asyncio.Transport, connection: "GuardedConnection") -> None:
        super().__init__()
        self._transport = transport
        self._connection = connection

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes, but nothing after the last response, such as a response to a request that has been refused."""
        if not self._connection.is_lingering:
            self._connection.write(data)

    def close(self) -> None:
        """Closes the connection as it sees fit."""
        self._connection.close()

    def abort(self) -> None:
        """Closes at once, and drops what has not been sent."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Returns whether nothing more can be sent."""
        return self._connection.is_lingering or self._transport.is_closing()


class GuardedConnection(HttpToolsProtocol):
    """A connection that closes itself on headers too long or too slow, when idle, and when nobody reads.

    It ignores every Upgrade, as RFC 9110 allows. httptools takes the bytes after such a head for another protocol; they
    may be the body, which uvicorn would parse as the next request.
    """

    read_seconds = 30
    min_bytes_per_second = 1000

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts waiting for the first request."""
        super().connection_made(transport)
        # Report even the first byte that the client does not read.
        transport.set_write_buffer_limits(high=0)
        self.transport = _Transport(transport, self)
        self._socket = transport
        self._head_bytes: int | None = 0
        self._is_in_head = False
        self._is_in_request = False
        self.is_lingering = False
        self._unsent: list[bytes | bytearray | memoryview] = []
        self._unparsed = memoryview(b"")
        self._waiting_bytes = 0
        self.flow = _Flow(transport, self)
        self._is_shutting_down = False
        self._made_at = self.loop.time()
        self._running: RequestResponseCycle | None = None
        self._refusal: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all waiting, and the request in progress: uvicorn stops the latest, which may be a pipelined one."""
        self._stop_waiting()
        self._stop_waiting_for_reader()
        self._unparsed = memoryview(b"")
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Closes after the response in progress, or after a moment in which a request may still arrive.

        uvicorn closes a connection without a request at once, even if its client has just sent one.
        """
        self._is_shutting_down = True
        if self.is_lingering:
            self.loop.call_later(_LAST_SECONDS, self._socket.abort)
        elif self.cycle is None:
            left = self._made_at + _NEW_SECONDS - self.loop.time()
            self.loop.call_later(max(_LAST_SECONDS, left), super().shutdown)
        elif self.cycle.response_complete:
            self.loop.call_later(_LAST_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def close(self) -> None:
        """Closes; within a request after what the client still sends, which is dropped, for `read_seconds` at most.

        A socket that closes before everything was read resets the connection, and the client may lose the response:
        RFC 9112, section 9.6.
        """
        # uvicorn closes a connection that is lost, too, and a shutdown may come after that.
        if self.is_lingering or self._socket.is_closing():
            return
        self._flush()
        if not self._is_in_request:
            self._socket.close()
            return
        self.is_lingering = True
        if self._socket.can_write_eof():
            self._socket.write_eof()
        self._stop_waiting()
        self._unparsed = memoryview(b"")
        self.flow.resume_reading()
        # There is no response yet to a request whose head is incomplete.
        has_no_response = self._is_shutting_down and self._is_in_head and self._refusal is None
        self._timer = self.loop.call_later(_LAST_SECONDS if has_no_response else self.read_seconds, self._socket.abort)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes with those that follow at once: uvicorn writes a head and its body apart, each a system call."""
        if not self._unsent:
            self.loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        if self._unsent and not self._socket.is_closing():
            self._socket.writelines(self._unsent)
        self._unsent = []

    def pause_writing(self) -> None:
        """Starts waiting for the client to read; otherwise an unread response would stay in memory for good."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Stops waiting for the client to read: it does."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parses received bytes.

        uvicorn's own method would stop the keep-alive timer on any data, even an empty line.
        """
        if not self.transport.is_closing() and self._refusal is None:
            self._unparsed = memoryview(bytes(self._unparsed) + data)
            self._parse_waiting()
            # The request in progress resumes reading whenever it asks for more of its body, or whether its client is
            # still there.
            if self.has_unparsed:
                self.flow.pause_reading()

    def on_response_complete(self) -> None:
        """Parses further pipelined requests, as there is room for one more; refuses the one that was invalid."""
        super().on_response_complete()
        if self._unparsed:
            self._parse_waiting()
            self.flow.resume_reading()
        self._send_refusal()

    def on_message_begin(self) -> None:
        """Starts waiting for the end of the headers."""
        super().on_message_begin()
        self._head_bytes = 0
        self._is_in_head = self._is_in_request = True
        self._wait()

    def on_url(self, url: bytes) -> None:
        """Takes a part of the target."""
        super().on_url(url)
        if len(self.url) > _MAX_TARGET_BYTES:
            self._refuse(400, f"The path and the query are longer than {_MAX_TARGET_BYTES} bytes: shorten them.")
            raise _RefusedError

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header, but no trailer after the body: a proxy in front may not have checked it."""
        if not self._is_in_head:
            return
        if len(self.headers) == _MAX_HEADERS:
            self._refuse(400, f"The request has more than {_MAX_HEADERS} headers: send fewer.")
            raise _RefusedError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the wait for the headers, unless they will be parsed again without an Upgrade."""
        if self.parser.should_upgrade():
            return
        if (fault := find_fault(self.parser.get_http_version(), self.headers)) is not None:
            self._refuse(*fault)
            raise _RefusedError
        super().on_headers_complete()
        # Only now: uvicorn refuses some targets, and a refused head is no request whose body could be invalid.
        self._head_bytes = None
        self._is_in_head = False
        self._stop_waiting()
        if self._is_shutting_down:
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        """Counts the following bytes as a head until there is body: it may be the last chunk."""
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Bounds the wait for the rest of a body whose response is complete already."""
        self._head_bytes = None
        super().on_body(body)
        if self.cycle.response_complete and self._timer is None:
            self._wait()

    def on_message_complete(self) -> None:
        """Starts the keep-alive timer if the response was complete first; uvicorn starts it otherwise."""
        if self.parser.should_upgrade():
            return
        self._head_bytes = None
        self._is_in_request = False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._stop_waiting()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def has_unparsed(self) -> bool:
        """Whether received bytes wait to be parsed."""
        return len(self._unparsed) > 0

    def _parse_waiting(self) -> None:
        """Parses received bytes while there is room for requests, and counts the bytes of an unfinished head."""
        while self._unparsed and self._has_room() and not self.transport.is_closing():
            piece, self._unparsed = self._unparsed[:_PIECE_BYTES], self._unparsed[_PIECE_BYTES:]
            try:
                self._parse(piece)
            except httptools.HttpParserError:
                self._refuse(400, "Invalid HTTP request: check its request line and headers.")
            self._waiting_bytes += len(piece)
            # The count includes what came before the head in its first piece, which is little.
            if self._head_bytes is not None:
                self._head_bytes += len(piece)
                if self._head_bytes > _MAX_HEAD_BYTES:
                    self._refuse(400, f"The headers are longer than {_MAX_HEAD_BYTES} bytes: send fewer.")

    def _has_room(self) -> bool:
        """Whether to parse more: always for the request in progress, whose body is bounded by those who read it."""
        if not self.pipeline:
            self._waiting_bytes = 0
        return len(self.pipeline) < _MAX_WAITING and self._waiting_bytes < _MAX_WAITING_BYTES

    def _parse(self, rest: memoryview) -> None:
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # CONNECT is an upgrade without any header.
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(400, "The method CONNECT is not supported: this server is not a proxy.")
                    return
                rest = rest[upgrade.args[0] :]
            self._parse_without_upgrade()

    def _parse_without_upgrade(self) -> None:
        """Parses the last head again, without its Upgrade.

        It takes a new parser, as the last one may consider the connection to be over.
        """
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        # The same setting as uvicorn's own parser.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([line, *headers, b"", b""]))

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.read_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        self._unset_keepalive_if_required()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait_for_reader(self) -> None:
        self._stop_waiting_for_reader()
        unread = self._socket.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self.read_seconds, self._check_reader, unread)

    def _check_reader(self, unread: int) -> None:
        """Goes on waiting for a client that reads, however long its response is: a response is buffered as a whole."""
        read = unread - self._socket.get_write_buffer_size()
        if read < self.read_seconds * self.min_bytes_per_second:
            self.transport.abort()
        else:
            self._wait_for_reader()

    def _stop_waiting_for_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _give_up(self) -> None:
        self._timer = None
        # A response in progress goes first; uvicorn starts the keep-alive timer after it.
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if self._is_in_head:
            self._refuse(408, f"The headers did not arrive within {self.read_seconds} s: send them faster.")
        else:
            # There is no request to respond to: browsers connect in advance.
            self._socket.close()

    def _refuse(self, status: int, text: str) -> None:
        """Parses nothing more, and responds with an error after the responses to all requests before this one."""
        if self.transport.is_closing() or self._refusal is not None:
            return
        self.logger.warning(text)
        # The middleware that counts requests never sees this one.
        if (service := self.app_state.get("service")) is not None:
            service.metrics.refuse(status)
        self._refusal = status, text
        self._stop_waiting()
        self._unparsed = memoryview(b"")
        # The body may be what is invalid: no such request is started.
        is_in_body = self._is_in_request and not self._is_in_head
        self._is_in_request = True
        if is_in_body and self.pipeline:
            self.pipeline.popleft()
        elif is_in_body:
            self._refuse_running()
        self._send_refusal()

    def _refuse_running(self) -> None:
        """Ends the request in progress, whose body is invalid, unless its response has begun; that is then the last."""
        assert self._running is not None
        if not self._running.response_started:
            self._running = None
        elif self._running.response_complete:
            self.transport.close()
        else:
            self._running.keep_alive = False

    def _send_refusal(self) -> None:
        """Responds in JSON to an invalid request whose turn it is, and closes; uvicorn would respond in plain text."""
        is_busy = self.pipeline or (self._running is not None and not self._running.response_complete)
        if self._refusal is None or is_busy or self.transport.is_closing():
            return
        status, text = self._refusal
        response = JSONResponse({"error": text}, status, {"connection": "close"})
        headers = [*self.server_state.default_headers, *response.raw_headers]
        lines = [STATUS_LINE[status].rstrip(), *(b": ".join(header) for header in headers), b"", bytes(response.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
