"""Connections without a network, with a clock that passes at once: what is answered, and when they are closed."""

import asyncio
import json
import logging
import re
import signal
import threading
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.server import ServerState

from server import connection
from server.connection import GuardedConnection, find_fault, install, uvicorn_server
from server.errors import StartError
from server.settings import Settings
from tests.server.virtual_time import run_virtually

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
KEEP_ALIVE = 5


class Transport(asyncio.Transport):
    """Keeps what is written, and notes what else happens and when."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop, self.start = loop, loop.time()
        self.written = b""
        self.events: list[tuple[float, str]] = []
        self.high: int | None = None
        self.may_write_eof = True
        self.unread = 0

    def get_extra_info(self, name, default=None):
        return {"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 1)}.get(name, default)

    def get_write_buffer_size(self):
        return self.unread

    def set_write_buffer_limits(self, high=None, low=None):
        self.high = high

    def write(self, data):
        assert not self.is_closing()
        self.written += data

    def can_write_eof(self):
        return self.may_write_eof

    def write_eof(self):
        self.note("eof")

    def is_closing(self):
        return any(event in ("close", "abort") for _, event in self.events)

    def close(self):
        self.note("close")

    def abort(self):
        self.note("abort")

    def pause_reading(self):
        self.note("pause")

    def resume_reading(self):
        self.note("resume")

    def note(self, event: str) -> None:
        self.events.append((round(self.loop.time() - self.start, 3), event))


class App:
    """Answers a request with what it has understood, once `go` is set, after `to_read` parts of the body."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.to_read: float = float("inf")
        self.seen: list[tuple[str, int, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        body, is_complete, read = b"", False, 0
        while not is_complete and read < self.to_read:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_complete, read = not message.get("more_body", False), read + 1
        await self.go.wait()
        self.seen.append((scope["path"], len(scope["headers"]), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def run(test) -> Transport:
    """Runs a coroutine function with a connection, its transport and its application; returns the transport."""

    async def main() -> Transport:
        app, loop = App(), asyncio.get_running_loop()
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, ws="none", timeout_keep_alive=KEEP_ALIVE
        )
        config.load()
        state = ServerState()
        state.default_headers = [(b"server", b"test")]
        made = GuardedConnection(config=config, server_state=state, app_state={}, _loop=loop)
        transport = Transport(loop)
        made.connection_made(transport)
        await test(made, transport, app)
        return transport

    return run_virtually(main())


async def feed(made: GuardedConnection, *pieces: bytes) -> None:
    """Lets bytes arrive, and the application run."""
    for piece in pieces:
        made.data_received(piece)
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def statuses(transport: Transport) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", transport.written)]


def check_refusal(transport: Transport, status: int, text: str) -> None:
    """Checks that the last response is an error in JSON, as others are, which ends the connection."""
    written = transport.written[transport.written.rindex(b"HTTP/1.1 ") :]
    head, _, body = written.partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert line.strip() == line
    assert {b"server: test", b"connection: close", b"content-length: %d" % len(body)} < {*headers}
    assert json.loads(body) == {"error": text}


# Sending


def test_a_response_is_sent_by_one_system_call():
    async def test(made, transport, app):
        sent: list[bytes] = []
        transport.write = sent.append
        await feed(made, GET)
        assert [data.endswith(b"\r\n\r\nok") for data in sent] == [True]

    run(test)


# Waiting for the client


def test_a_connection_without_a_request_is_closed():
    async def test(made, transport, app):
        assert transport.high == 0
        await asyncio.sleep(29.9)
        assert transport.events == []
        await asyncio.sleep(60)

    transport = run(test)
    assert transport.events == [(30, "close")]
    assert transport.written == b""


@pytest.mark.parametrize("head", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_slow_head_is_refused_after_its_time(head, caplog):
    async def test(made, transport, app):
        await asyncio.sleep(20)
        await feed(made, head)
        await asyncio.sleep(29.9)
        assert transport.written == b""
        await asyncio.sleep(60)

    transport, text = run(test), "The headers did not arrive within 30 s: send them faster."
    check_refusal(transport, 408, text)
    # What the client still sends is dropped, for a while.
    assert transport.events == [(50, "eof"), (80, "abort")]
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.WARNING, text)]


def test_empty_lines_are_no_request():
    async def test(made, transport, app):
        for _ in range(5):
            await feed(made, b"\r\n")
            await asyncio.sleep(8)

    assert run(test).events == [(30, "close")]


def test_the_next_request_has_the_keep_alive_time():
    async def test(made, transport, app):
        await asyncio.sleep(28)
        await feed(made, GET)
        await asyncio.sleep(4)
        await feed(made, GET)
        await asyncio.sleep(60)

    transport = run(test)
    assert statuses(transport) == [200, 200]
    assert transport.events == [(37, "close")]


def test_a_begun_head_ends_the_keep_alive_time():
    async def test(made, transport, app):
        await feed(made, GET)
        await asyncio.sleep(4)
        await feed(made, GET[:20])
        await asyncio.sleep(20)
        await feed(made, GET[20:])
        assert transport.events == []
        await asyncio.sleep(60)

    transport = run(test)
    assert statuses(transport) == [200, 200]
    assert transport.events == [(29, "close")]


def test_a_head_behind_a_request_in_progress_does_not_cut_off_its_response():
    async def test(made, transport, app):
        app.go.clear()
        await feed(made, GET + GET[:20])
        await asyncio.sleep(100)
        assert transport.events == []
        app.go.set()
        await settle()
        assert statuses(transport) == [200]
        await asyncio.sleep(60)

    assert run(test).events == [(100 + KEEP_ALIVE, "eof"), (130 + KEEP_ALIVE, "abort")]


def test_a_response_may_take_as_long_as_it_likes():
    async def test(made, transport, app):
        app.go.clear()
        await feed(made, POST + b"0123456789")
        await asyncio.sleep(1000)
        assert transport.events == []
        app.go.set()
        await settle()

    assert statuses(run(test)) == [200]


def test_the_rest_of_an_answered_body_is_waited_for():
    async def test(made, transport, app):
        app.to_read = 1
        await feed(made, POST)
        assert app.seen == []
        await feed(made, b"0")
        assert statuses(transport) == [200]
        await asyncio.sleep(3)
        await feed(made, b"12")
        await asyncio.sleep(20)
        await feed(made, b"34")
        await asyncio.sleep(60)

    assert run(test).events == [(33, "close")]


def test_an_answered_body_that_ends_leaves_the_connection_open():
    async def test(made, transport, app):
        app.to_read = 1
        await feed(made, POST, b"0")
        await asyncio.sleep(3)
        await feed(made, b"1234")
        await asyncio.sleep(25)
        await feed(made, b"56789")
        await asyncio.sleep(4)
        app.to_read = float("inf")
        await feed(made, GET)
        await asyncio.sleep(60)

    transport = run(test)
    assert statuses(transport) == [200, 200]
    assert transport.events == [(32 + KEEP_ALIVE, "close")]


def test_nothing_is_waited_for_once_the_connection_is_lost():
    async def test(made, transport, app):
        await feed(made, GET[:20])
        made.pause_writing()
        made.connection_lost(ConnectionResetError())
        assert not made.has_unparsed
        await asyncio.sleep(100)

    transport = run(test)
    assert (transport.events, transport.written) == ([], b"")


@pytest.mark.parametrize("sent", [GET[:20], POST + b"0", GET], ids=["in a head", "in a body", "after a request"])
@pytest.mark.parametrize("is_shutdown", [False, True])
def test_a_connection_that_its_client_has_closed_is_left_alone(sent, is_shutdown):
    async def test(made, transport, app):
        await feed(made, sent)
        if is_shutdown:
            made.shutdown()
        transport.close()
        made.connection_lost(None)
        await asyncio.sleep(100)

    assert run(test).events == [(0, "close")]


# Clients that do not read


def test_a_client_that_does_not_read_is_dropped():
    async def test(made, transport, app):
        await asyncio.sleep(5)
        made.pause_writing()
        await asyncio.sleep(20)
        made.resume_writing()
        await asyncio.sleep(3)
        await feed(made, GET)
        made.pause_writing()
        made.pause_writing()
        await asyncio.sleep(60)

    assert (58, "abort") in run(test).events


@pytest.mark.parametrize(("rate", "end"), [(1100, None), (999, 30), (0, 30)], ids=["steadily", "slowly", "not"])
def test_a_client_that_reads_gets_the_whole_response_however_long_it_is(rate, end):
    async def test(made, transport, app):
        transport.unread = 300_000
        made.pause_writing()
        while transport.unread > 0 and not transport.is_closing():
            await asyncio.sleep(1)
            transport.unread -= rate
        if not transport.is_closing():
            made.resume_writing()
        await asyncio.sleep(29)

    events = run(test).events
    assert [event for event in events if event[1] == "abort"] == ([(end, "abort")] if end else [])


def test_a_response_waits_until_the_client_reads():
    async def test(made, transport, app):
        made.pause_writing()
        await feed(made, GET)
        assert transport.written == b""
        made.resume_writing()
        await settle()
        assert statuses(transport) == [200]

    run(test)


# Long heads


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("first", [b"", GET], ids=["at once", "after a request"])
def test_a_head_may_have_64_kilobytes(excess, first):
    async def test(made, transport, app):
        await feed(made, *([first] if first else []))
        start = b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: "
        await feed(made, start, b"x" * (64 * 1024 - len(start)))
        assert transport.events == []
        await feed(made, b"x" * excess)

    transport = run(test)
    if excess:
        check_refusal(transport, 400, "The headers are longer than 65536 bytes: send fewer.")
        assert [event for _, event in transport.events] == ["eof"]
    else:
        assert statuses(transport) == ([200] if first else [])


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("start", [b"/", b"/predict?", b"http://a/?"])
@pytest.mark.parametrize("size", [100, 4096, 10_000])
def test_a_target_may_have_8_kilobytes(excess, start, size):
    target = start.ljust(8192 + excess, b"x")

    async def test(made, transport, app):
        request = GET.replace(b"/healthz", target)
        await feed(made, *(request[i : i + size] for i in range(0, len(request), size)))

    transport = run(test)
    assert statuses(transport) == [400 if excess else 200]
    if excess:
        check_refusal(transport, 400, "The path and the query are longer than 8192 bytes: shorten them.")


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("first", [b"", GET], ids=["at once", "after a request"])
@pytest.mark.parametrize("upgrade", [b"", b"Connection: upgrade\r\nUpgrade: h2c\r\n"], ids=["plain", "upgrade"])
def test_a_head_may_have_128_headers(excess, first, upgrade):
    lines = b"ab:\r\n" * (127 - upgrade.count(b"\n") + excess)

    async def test(made, transport, app):
        await feed(made, first + GET[:-2] + upgrade + lines + b"\r\n")

    transport = run(test)
    assert statuses(transport) == [200] * bool(first) + [400 if excess else 200]
    if excess:
        check_refusal(transport, 400, "The request has more than 128 headers: send fewer.")


def test_trailers_are_not_counted_as_headers():
    async def test(made, transport, app):
        await feed(made, CHUNKED + b"1\r\nx\r\n0\r\n" + b"ab:\r\n" * 500 + b"\r\n")

    assert statuses(run(test)) == [200]


def test_a_body_counts_as_no_head():
    async def test(made, transport, app):
        pieces = b"".join(b"%x\r\n%s\r\n" % (5000, bytes(5000)) for _ in range(40))
        await feed(made, CHUNKED, pieces, b"0\r\n\r\n")
        assert [len(body) for _, _, body in app.seen] == [200_000]
        length = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n"
        await feed(made, length, *[bytes(50_000)] * 4)
        assert [len(body) for _, _, body in app.seen] == [200_000] * 2

    run(test)


@pytest.mark.parametrize("line", [b"X-Sum: 1\r\n", b"x"])
def test_trailers_without_end_are_refused(line):
    async def test(made, transport, app):
        await feed(made, CHUNKED, b"1\r\nx\r\n0\r\n")
        await feed(made, line * (40_000 // len(line)))
        assert transport.written == b""
        await feed(made, line * (40_000 // len(line)))

    check_refusal(run(test), 400, "The headers are longer than 65536 bytes: send fewer.")


def test_trailers_are_no_headers():
    async def test(made, transport, app):
        await feed(made, CHUNKED + b"1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert app.seen == [("/predict", 2, b"x")]

    run(test)


# Closing


def test_a_connection_without_a_request_closes_at_once():
    async def test(made, transport, app):
        made.close()
        assert transport.events == [(0, "close")]

    run(test)


@pytest.mark.parametrize("may_write_eof", [True, False])
def test_a_connection_within_a_request_drops_the_rest_first(may_write_eof):
    async def test(made, transport, app):
        transport.may_write_eof = may_write_eof
        app.to_read = 0
        made.transport.write(b"early ")
        await feed(made, POST[:-2] + b"Connection: close\r\n\r\n")
        assert statuses(transport) == [200]
        assert made.is_lingering
        assert made.transport.is_closing()
        written = transport.written
        await asyncio.sleep(10)
        made.close()
        made.transport.write(b"late")
        await feed(made, b"0123456789" + GET)
        assert (transport.written, made.has_unparsed) == (written, False)
        assert statuses(transport) == [200]
        await asyncio.sleep(60)

    events = run(test).events
    assert events == [*([(0, "eof")] if may_write_eof else []), (30, "abort")]


def test_a_lingering_connection_reads_on():
    async def test(made, transport, app):
        app.go.clear()
        await feed(made, GET * 200)
        assert transport.events == [(0, "pause")]
        assert made.has_unparsed
        made.close()
        assert transport.events == [(0, "pause"), (0, "eof"), (0, "resume")]
        assert not made.has_unparsed

    run(test)


def test_whether_more_can_be_sent_is_up_to_the_socket_too():
    async def test(made, transport, app):
        assert not made.transport.is_closing()
        transport.close()
        assert made.transport.is_closing()
        made.transport.abort()
        assert transport.events == [(0, "close"), (0, "abort")]

    run(test)


# Shutting down


@pytest.mark.parametrize(
    ("first", "age", "left"), [(b"", 0, 2), (b"", 1.5, 0.5), (b"", 10, 0.2), (GET, 0, 0.2)], ids=str
)
def test_a_request_may_be_under_way_at_a_shutdown(first, age, left):
    """Above all the first of a new connection."""

    async def test(made, transport, app):
        if first:
            await feed(made, first)
        await asyncio.sleep(age)
        made.shutdown()
        await asyncio.sleep(left - 0.01)
        assert transport.events == []
        await asyncio.sleep(1)

    assert run(test).events == [(age + left, "close")]


@pytest.mark.parametrize(("delay", "end"), [(None, 10), (0.1, 10.1)])
def test_a_response_is_finished_and_is_the_last_at_a_shutdown(delay, end):
    async def test(made, transport, app):
        app.go.clear()
        if delay is None:
            await feed(made, GET)
        made.shutdown()
        if delay is not None:
            # The request was under way.
            await asyncio.sleep(delay)
            await feed(made, GET)
        await asyncio.sleep(10)
        assert transport.events == []
        app.go.set()
        await settle()

    transport = run(test)
    assert b"connection: close" in transport.written
    assert transport.events == [(end, "close")]


def test_a_request_that_arrives_at_a_shutdown_is_the_last():
    async def test(made, transport, app):
        made.shutdown()
        await asyncio.sleep(0.1)
        await feed(made, GET)

    transport = run(test)
    assert b"connection: close" in transport.written
    assert (statuses(transport), transport.events) == ([200], [(0.1, "close")])


def test_without_a_shutdown_a_response_keeps_the_connection():
    async def test(made, transport, app):
        await feed(made, GET)
        assert b"connection" not in transport.written

    run(test)


def test_a_refused_request_does_not_hold_up_a_shutdown():
    async def test(made, transport, app):
        await feed(made, b"POST / HTTP/1.1\r\n\r\n")
        made.shutdown()
        await asyncio.sleep(1)

    assert run(test).events == [(0, "eof"), (0.2, "abort")]


@pytest.mark.parametrize(("first", "age", "left"), [(b"", 0, 2), (b"", 10, 0.2), (GET, 1, 0.2)], ids=str)
def test_a_head_that_is_incomplete_does_not_hold_up_a_shutdown(first, age, left):
    async def test(made, transport, app):
        await feed(made, first + GET[:20])
        await asyncio.sleep(age)
        made.shutdown()
        await asyncio.sleep(60)

    assert run(test).events == [(age + left, "eof"), (round(age + left + 0.2, 3), "abort")]


# Pipelined requests


def test_a_bounded_number_of_requests_is_parsed_ahead():
    count = 2000

    async def test(made, transport, app):
        app.go.clear()
        await feed(made, GET * count)
        assert 16 <= len(made.pipeline) <= 16 + 4096 // len(GET) + 1
        assert made.has_unparsed
        assert transport.events == [(0, "pause")]
        app.go.set()
        while len(app.seen) < count:
            await asyncio.sleep(0)
            # Reading goes on only once all that was read is parsed.
            assert not made.has_unparsed or transport.events == [(0, "pause")]
        await settle()
        assert transport.events == [(0, "pause"), (0, "resume")]
        await asyncio.sleep(60)

    transport = run(test)
    assert statuses(transport) == [200] * count
    assert transport.events[2:] == [(KEEP_ALIVE, "close")]


async def flood(made: GuardedConnection, size: int) -> int:
    """Sends up to so many bytes, as long as they are read, to a request that asks for them; returns how many were."""
    sent = 0
    while sent < size:
        gone = asyncio.ensure_future(made._running.receive())
        await settle()
        gone.cancel()
        if made.flow.read_paused:
            break
        await feed(made, bytes(65536))
        sent += 65536
    return sent


@pytest.mark.parametrize("count", [16, 17])
def test_what_follows_the_waiting_requests_is_not_read_while_one_is_in_progress(count):
    async def test(made, transport, app):
        app.go.clear()
        await feed(made, POST + bytes(10) + GET * count)
        assert not made.has_unparsed
        assert await flood(made, 10_000_000) == 65536
        app.go.set()
        await settle()
        assert statuses(transport) == [200] * (1 + count) + [400]

    run(test)


def test_the_body_of_a_waiting_request_is_not_read_while_another_is_in_progress():
    async def test(made, transport, app):
        app.go.clear()
        await feed(made, POST + bytes(10) + POST.replace(b" 10", b" 500000"))
        assert await flood(made, 500_000) <= 3 * 65536
        assert len(made.cycle.body) <= 65536 + 4096
        rest = 500_000 - len(made.cycle.body) - len(made._unparsed)
        app.go.set()
        await settle()
        assert not made.flow.read_paused
        await feed(made, bytes(rest))
        assert [len(body) for _, _, body in app.seen] == [10, 500_000]

    run(test)


def test_nothing_is_parsed_behind_a_refused_request():
    async def test(made, transport, app):
        app.go.clear()
        await feed(made, GET * 3 + b"nonsense\r\n\r\n" + GET)
        assert transport.written == b""
        app.go.set()
        await settle()
        assert statuses(transport) == [200, 200, 200, 400]
        check_refusal(transport, 400, "Invalid HTTP request: check its request line and headers.")

    run(test)


# Upgrades


@pytest.mark.parametrize("cut", [0, 1, 60, 200])
def test_an_upgrade_is_ignored_and_the_body_read(cut):
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n"

    async def test(made, transport, app):
        whole = (head + b"abc") * 3 + GET
        await feed(made, *([whole[:cut]] if cut else []), whole[cut:])
        await asyncio.sleep(1)
        assert app.seen == [("/x", 3, b"abc")] * 3 + [("/healthz", 1, b"")]
        await asyncio.sleep(60)

    assert run(test).events[-1] == (KEEP_ALIVE, "close")


@pytest.mark.parametrize("option", [b"close", b"Upgrade, close"])
def test_what_follows_the_last_request_is_ignored(option, caplog):
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: %s\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n" % option

    async def test(made, transport, app):
        await feed(made, head + b"abc" + GET)
        assert app.seen == [("/x", 4 - (b"Upgrade" in option), b"abc")]

    transport = run(test)
    assert (statuses(transport), transport.events, caplog.messages) == ([200], [(0, "close")], [])


def test_connect_is_refused():
    async def test(made, transport, app):
        await feed(made, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        assert statuses(transport) == [400]
        check_refusal(transport, 400, "The method CONNECT is not supported: this server is not a proxy.")

    run(test)


# Heads that others may understand differently


NO_HOST = "The request has {} Host headers: send exactly one."
BAD_HOST = "The Host header is invalid: send the name or address of the server."
OLD_CODING = "HTTP/{} has no Transfer-Encoding: send Content-Length instead."
CODING = "This Transfer-Encoding is not supported: send the body as chunked, or with Content-Length."


@pytest.mark.parametrize(
    ("version", "headers", "fault"),
    [
        ("1.1", [("host", "a")], None),
        ("1.1", [("host", "")], None),
        ("1.1", [("host", "[::1]:80")], None),
        ("1.1", [], (400, NO_HOST.format(0))),
        ("1.1", [("x", "a")], (400, NO_HOST.format(0))),
        ("1.1", [("host", "a")] * 2, (400, NO_HOST.format(2))),
        ("1.0", [("host", "a")] * 3, (400, NO_HOST.format(3))),
        ("1.0", [], None),
        ("0.9", [], None),
        ("1.0", [("host", "a")], None),
        ("1.1", [("host", "a b")], (400, BAD_HOST)),
        ("1.0", [("host", "a/b")], (400, BAD_HOST)),
        ("1.1", [("host", "a"), ("transfer-encoding", "Chunked")], None),
        ("1.0", [("transfer-encoding", "chunked")], (400, OLD_CODING.format("1.0"))),
        ("0.9", [("transfer-encoding", "chunked")], (400, OLD_CODING.format("0.9"))),
        ("1.1", [("host", "a"), ("transfer-encoding", "gzip, chunked")], (501, CODING)),
        ("1.1", [("host", "a"), *[("transfer-encoding", "chunked")] * 2], (501, CODING)),
    ],
)
def test_what_is_wrong_with_a_head(version, headers, fault):
    assert find_fault(version, [(name.encode(), value.encode()) for name, value in headers]) == fault


def test_a_head_with_a_fault_is_refused_and_not_answered():
    async def test(made, transport, app):
        await feed(made, GET.replace(b"Host", b"Name") + GET)
        assert statuses(transport) == [400]
        check_refusal(transport, 400, NO_HOST.format(0))
        assert app.seen == []

    run(test)


@pytest.mark.parametrize("target", [b"http://a", b"http://a:99999/", b"/\xe9"], ids=["no path", "port", "not ASCII"])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_target_that_cannot_be_parsed_is_refused_after_the_requests_before_it(target, before):
    async def test(made, transport, app):
        app.go.clear()
        await feed(made, GET * before + GET.replace(b"/healthz", target) + GET)
        app.go.set()
        await settle()
        assert statuses(transport) == [200] * before + [400]
        check_refusal(transport, 400, "Invalid HTTP request: check its request line and headers.")

    run(test)


def test_a_target_that_cannot_be_parsed_is_refused_on_a_kept_connection():
    async def test(made, transport, app):
        await feed(made, GET, GET.replace(b"/healthz", b"http://a"))
        assert statuses(transport) == [200, 400]

    run(test)


def test_an_old_client_needs_no_host():
    async def test(made, transport, app):
        await feed(made, b"GET /old HTTP/1.0\r\n\r\n")
        assert app.seen == [("/old", 0, b"")]

    transport = run(test)
    assert (statuses(transport), transport.events) == ([200], [(0, "close")])


# The server around the connections


def test_connections_of_uvicorn_with_httptools_are_bounded():
    server = uvicorn.Server(uvicorn.Config(App, log_config=None, http="httptools"))
    server.config.load()
    install(server, Settings(read_seconds=7, min_bytes_per_second=50))
    used = server.config.http_protocol_class
    assert issubclass(used, GuardedConnection)
    assert (used.read_seconds, GuardedConnection.read_seconds, used.__name__) == (7, 30, "GuardedConnection")
    assert (used.min_bytes_per_second, GuardedConnection.min_bytes_per_second) == (50, 1000)


def test_other_connections_are_refused():
    server = uvicorn.Server(uvicorn.Config(App, log_config=None, http="h11"))
    server.config.load()
    with pytest.raises(StartError, match=r"^This application bounds the connections of uvicorn with httptools, and no"):
        install(server, Settings())


def test_the_server_is_found_by_its_signal_handler_in_the_main_thread(monkeypatch):
    server = uvicorn.Server(uvicorn.Config(App, log_config=None))
    monkeypatch.setattr(connection.signal, "getsignal", {signal.SIGTERM: server.handle_exit}.__getitem__)
    assert uvicorn_server() is server
    failures: list[Exception] = []

    def find() -> None:
        try:
            uvicorn_server()
        except StartError as error:
            failures.append(error)

    thread = threading.Thread(target=find)
    thread.start()
    thread.join()
    assert len(failures) == 1


@pytest.mark.parametrize("handler", [signal.SIG_DFL, print, SimpleNamespace().__init__])
def test_no_other_server_is_accepted(monkeypatch, handler):
    monkeypatch.setattr(connection.signal, "getsignal", lambda number: handler)
    with pytest.raises(
        StartError, match=r"bounds the connections of uvicorn, and no others: run it as `uvicorn server\.app:app`"
    ):
        uvicorn_server()
