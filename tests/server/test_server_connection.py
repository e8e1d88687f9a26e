"""Connections outside of a request in progress, over plain sockets.

Where only time has to pass, all but a few are marked `run`: test_server_connection_memory.py moves its clock instead.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.server.wire import encode, head, log_lines, read_answer, samples

PICTURE = encode((250, 0, 0))
UPGRADES = [
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    ("Connection: close, Upgrade", "Upgrade: h2c"),
    ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"),
]
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
WASM = b"GET /onnxruntime-web/ort-wasm-simd-threaded.wasm HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
WASM_BYTES = 40_000_000
LARGE = 12 * 2**20  # More than a body may have, and than the buffers of a socket hold.


@contextlib.contextmanager
def connected(server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    received = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            received.append(part)
    return b"".join(received)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


@pytest.fixture(scope="module")
def impatient(serve_module, model_path):
    """A server that waits one second for a client, but three for the next request."""
    with serve_module(JAXCNN_MODEL=str(model_path), JAXCNN_READ_SECONDS="1", UVICORN_TIMEOUT_KEEP_ALIVE="3") as it:
        yield it


# Upgrades


@pytest.mark.parametrize("upgrade", UPGRADES, ids=["h2c", "and close", "websocket"])
@pytest.mark.parametrize("pause", [0, 0.1], ids=["at once", "after the head"])
def test_an_upgrade_is_declined_and_the_body_read(server, upgrade, pause):
    with connected(server) as connection:
        connection.sendall(head(*upgrade, f"Content-Length: {len(PICTURE)}") + PICTURE[: 0 if pause else None])
        time.sleep(pause)
        connection.sendall(PICTURE if pause else b"")
        status, answer = read_answer(connection)
        assert (status, answer["predicted_class"]) == (200, "red")


def test_a_chunked_body_is_read_with_an_upgrade(server):
    with connected(server) as connection:
        connection.sendall(head(*UPGRADES[0], "Transfer-Encoding: chunked"))
        for part in (PICTURE[:50], PICTURE[50:], b""):
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        assert read_answer(connection)[1]["predicted_class"] == "red"


def test_a_body_beside_an_upgrade_is_not_parsed_as_a_request(server):
    with connected(server) as connection:
        connection.sendall(head(*UPGRADES[0], f"Content-Length: {len(HEALTH)}"))
        time.sleep(0.1)
        connection.sendall(HEALTH + b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = until_closed(connection)
    assert statuses(received) == [400, 200]
    assert received.endswith(b'{"status":"ready"}')


def test_upgrades_in_a_row_are_answered_in_order(server):
    paths = ["/healthz", "/readyz"] * 500
    request = "GET {} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connected(server) as connection:
        connection.sendall("".join(request.format(path) for path in paths).encode())
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = until_closed(connection)
    assert statuses(received) == [200] * 1001
    assert re.findall(rb'"status":"(ok|ready)"', received) == [b"ok", b"ready"] * 500


@pytest.mark.parametrize("target", ["/predict", "example.org:443"])
def test_connect_is_refused(server, target):
    with connected(server) as connection:
        connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 33\r\n\r\n".encode() + HEALTH)
        received = until_closed(connection)
    assert statuses(received) == [400]
    assert list(json.loads(received.partition(b"\r\n\r\n")[2])) == ["error"]


# Heads that others may understand differently


@pytest.mark.parametrize(
    ("lines", "status", "complaint"),
    [
        (("POST /predict HTTP/1.1",), 400, "The request has 0 Host headers: send exactly one."),
        (("POST /predict HTTP/1.1", "Host: a", "Host: a"), 400, "The request has 2 Host headers: send exactly one."),
        (("POST /predict HTTP/1.0", "Host: a", "Host: b"), 400, "The request has 2 Host headers: send exactly one."),
        (("POST /predict HTTP/1.1", "Host: a b"), 400, "The Host header is invalid: "),
        (("POST /predict HTTP/1.1", "Host: a/b"), 400, "The Host header is invalid: "),
        (("POST /predict HTTP/1.1", "Host: a@b"), 400, "The Host header is invalid: "),
        *(
            (
                ("POST /predict HTTP/1.1", "Host: a", f"Transfer-Encoding: {coding}"),
                501,
                "This Transfer-Encoding is not",
            )
            for coding in ("gzip, chunked", "gzip,chunked", "identity, chunked", "deflate, gzip, chunked")
        ),
        (
            ("POST /predict HTTP/1.1", "Host: a", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
            501,
            "This Transfer-Encoding is not supported: ",
        ),
        (("POST /predict HTTP/1.0", "Transfer-Encoding: chunked"), 400, "HTTP/1.0 has no Transfer-Encoding: "),
        (
            ("POST /predict HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c"),
            400,
            "The request has 0 Host headers: send exactly one.",
        ),
    ],
)
def test_an_ambiguous_head_is_refused(server, lines, status, complaint):
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE)
    with connected(server) as connection:
        connection.sendall("\r\n".join([*lines, "Content-Type: image/png", "", ""]).encode() + body)
        received = until_closed(connection)
    assert statuses(received) == [status]
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"].startswith(complaint)


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /healthz HTTP/1.0",),
        ("GET /healthz HTTP/1.1", "Host:"),
        ("GET /healthz HTTP/1.1", "Host: [::1]:8000"),
        ("GET /healthz HTTP/1.1", "Host: my_service.default.svc:80"),
    ],
)
def test_an_unusual_host_is_accepted(server, lines):
    with connected(server) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        assert statuses(until_closed(connection)) == [200]


# Clients that stop sending


@pytest.mark.parametrize(
    ("request_", "rest", "status"),
    [
        pytest.param(HEALTH, b"\r\n", 200, id="empty line", marks=pytest.mark.run),
        pytest.param(head("Content-Length: 100", path="/nothing"), b"x", 404, id="404"),
        pytest.param(head("Content-Length: 99999999999"), b"x", 413, id="413", marks=pytest.mark.run),
        pytest.param(
            head("Transfer-Encoding: chunked", path="/nothing"),
            b"1\r\nx\r\n",
            404,
            id="chunks",
            marks=pytest.mark.run,
        ),
        pytest.param(
            head("Transfer-Encoding: chunked", path="/nothing"), b"1", 404, id="half a chunk", marks=pytest.mark.run
        ),
        pytest.param(
            b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            b"x",
            200,
            id="GET with a body",
            marks=pytest.mark.run,
        ),
        pytest.param(head("Content-Length: 1", path="/nothing"), b"x", 404, id="whole body", marks=pytest.mark.run),
    ],
)
def test_a_connection_is_closed_though_something_came_after_the_answer(impatient, request_, rest, status):
    with connected(impatient) as connection:
        connection.settimeout(8)
        connection.sendall(request_)
        assert read_answer(connection)[0] == status
        connection.sendall(rest)
        assert connection.recv(100) == b""


@pytest.mark.run
@pytest.mark.parametrize("drop", [b"\r\n", b"x"], ids=["empty lines", "a late body"])
def test_a_trickle_of_bytes_does_not_keep_a_connection_open(impatient, drop):
    with connected(impatient) as connection:
        connection.sendall(HEALTH if drop == b"\r\n" else head("Content-Length: 100000", path="/nothing"))
        read_answer(connection)
        assert is_closed_while_sending(connection, drop)


def is_closed_while_sending(connection: socket.socket, drop: bytes) -> bool:
    try:
        for _ in range(32):
            connection.sendall(drop)
            time.sleep(0.25)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    ("request_", "rest", "status"),
    [
        (head("Connection: close", f"Content-Length: {LARGE}"), b"x" * LARGE, 413),
        (
            head("Connection: close", "Transfer-Encoding: chunked"),
            b"%x\r\n%s\r\n0\r\n\r\n" % (LARGE, b"x" * LARGE),
            413,
        ),
        (head("Connection: close", f"Content-Length: {LARGE}", path="/nothing"), b"x" * LARGE, 404),
        (head("Transfer-Encoding: gzip, chunked"), b"x" * LARGE, 501),
        (b"GET /\x00 HTTP/1.1\r\n", b"x" * LARGE, 400),
    ],
    ids=["too large", "too large in chunks", "not found", "unsupported coding", "invalid head"],
)
def test_a_client_that_sends_everything_first_reads_why_it_was_refused(server, request_, rest, status):
    with connected(server) as connection:
        connection.sendall(request_)
        time.sleep(0.1)
        connection.sendall(rest)
        assert read_answer(connection)[0] == status
        assert connection.recv(100) == b""


@pytest.mark.run
def test_a_refused_body_is_not_taken_for_longer_than_any_other(impatient):
    with connected(impatient) as connection:
        connection.sendall(head("Connection: close", "Content-Length: 99999999999"))
        assert read_answer(connection)[0] == 413
        assert is_closed_while_sending(connection, b"x")


@pytest.mark.run
def test_a_body_that_ends_after_its_answer_leaves_the_connection_open(impatient):
    with connected(impatient) as connection:
        for _ in range(2):
            connection.sendall(head("Content-Length: 2", path="/nothing"))
            assert read_answer(connection)[0] == 404
            connection.sendall(b"x")
            time.sleep(0.2)
            connection.sendall(b"x")
            time.sleep(1.5)  # Longer than `read_seconds`.
        connection.sendall(HEALTH)
        assert read_answer(connection)[0] == 200


@pytest.mark.run
def test_the_wait_for_the_next_request_does_not_cut_it_off(serve, model_path):
    settings = {"JAXCNN_MODEL": str(model_path), "UVICORN_TIMEOUT_KEEP_ALIVE": "1"}
    with serve(**settings) as server, connected(server) as connection:
        for _ in range(2):
            connection.sendall(head(f"Content-Length: {len(PICTURE)}") + PICTURE[:-1])
            time.sleep(1.5)
            connection.sendall(PICTURE[-1:])
            assert read_answer(connection)[0] == 200


# Slow heads


@pytest.mark.parametrize(
    ("first", "start"),
    [
        (b"", b"GET / HT"),
        pytest.param(HEALTH, b"GET / HT", marks=pytest.mark.run),
        pytest.param(b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", marks=pytest.mark.run),
        pytest.param(HEALTH, b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", marks=pytest.mark.run),
    ],
    ids=["at once", "after a request", "header at once", "header after a request"],
)
def test_a_slow_head_is_408(impatient, first, start):
    with connected(impatient) as connection:
        if first:
            connection.sendall(first)
            assert read_answer(connection)[0] == 200
        connection.sendall(start)
        received = until_closed(connection)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"\r\nconnection: close\r\n" in received
    error = "The headers did not arrive within 1 s: send them faster."
    assert json.loads(received.partition(b"\r\n\r\n")[2]) == {"error": error}


@pytest.mark.run
def test_a_slow_head_does_not_cut_off_the_answer_before_it(serve, model_builder, tmp_path):
    slow = model_builder(tmp_path / "slow.onnx", work=60)
    settings = {"JAXCNN_MODEL": str(slow), "JAXCNN_READ_SECONDS": "1", "JAXCNN_MAX_BATCH": "1"}
    request = head(f"Content-Length: {len(PICTURE)}") + PICTURE
    with serve(**settings, JAXCNN_DEADLINE_MS="60000") as server, connected(server) as connection:
        connection.sendall(request + b"GET / HT")
        assert statuses(until_closed(connection))[0] == 200


# Clients that do not read


@pytest.fixture(scope="module")
def generous(serve_module, model_path, tmp_path_factory):
    """A server that waits two seconds for a client, with a demo page file larger than any socket buffer."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "ort.wasm.min.mjs").touch()
    (folder / "ort-wasm-simd-threaded.wasm").write_bytes(bytes(WASM_BYTES))
    settings = {"JAXCNN_MODEL": str(model_path), "JAXCNN_ONNXRUNTIME_WEB": str(folder), "JAXCNN_READ_SECONDS": "2"}
    with serve_module(**settings) as it:
        yield it


@pytest.mark.run
def test_a_response_that_nobody_reads_is_dropped(generous):
    with connected(generous) as connection:
        connection.sendall(WASM)
        time.sleep(3)
        assert len(until_closed(connection)) < WASM_BYTES


@pytest.mark.run
def test_a_client_that_reads_slowly_gets_the_whole_response(generous):
    with connected(generous) as connection:
        connection.sendall(WASM)
        parts = []
        for _ in range(8):
            parts.append(connection.recv(WASM_BYTES // 10, socket.MSG_WAITALL))
            time.sleep(0.4)
        received = b"".join([*parts, until_closed(connection)])
    assert len(received.partition(b"\r\n\r\n")[2]) == WASM_BYTES


# Pipelined requests


def test_pipelined_requests_are_answered_in_order(server):
    request = head(f"Content-Length: {len(PICTURE)}") + PICTURE + HEALTH
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(request * 100)
            received = b""
            while received.count(b"HTTP/1.1 200 ") < 200 or not received.endswith(b"}"):
                received += connection.recv(65536)
            assert re.findall(rb'"(predicted_class|status)":', received) == [b"predicted_class", b"status"] * 100
        connection.sendall(HEALTH)
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("cut", [7, len(PICTURE) // 2, len(PICTURE) + 20])
def test_the_last_pipelined_request_may_arrive_late(server, cut):
    requests = HEALTH * 300 + head(f"Content-Length: {len(PICTURE)}", "Connection: close") + PICTURE
    with connected(server) as connection:
        connection.sendall(requests[:-cut])
        time.sleep(0.5)
        connection.sendall(requests[-cut:])
        assert statuses(until_closed(connection)) == [200] * 301


INVALID = {
    "no Host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "no path": (b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "long head": (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 100_000, 400),
    "coding": (head("Transfer-Encoding: gzip, chunked"), 501),
    "chunk": (head("Transfer-Encoding: chunked") + b"5\r\nhello\r\nzz\r\n", 400),
    "late chunk": (head("Transfer-Encoding: chunked") + b"5\r\nhello\r\n" * 2000 + b"zz\r\n", 400),
}


@pytest.mark.parametrize(("invalid", "status"), INVALID.values(), ids=list(INVALID))
def test_requests_before_an_invalid_one_are_answered_first(server, invalid, status):
    before = server.log.read_text().count("traceback")
    refused = samples(server.client)
    valid = head(f"Content-Length: {len(PICTURE)}") + PICTURE + HEALTH
    with connected(server) as connection:
        connection.sendall(valid * 3 + invalid + HEALTH)
        received = until_closed(connection)
    assert statuses(received) == [200] * 6 + [status]
    assert re.findall(rb'"(predicted_class|status|error)":', received) == [b"predicted_class", b"status"] * 3 + [
        b"error"
    ]
    server.client.get("/healthz", headers={"X-Request-ID": f"after-{status}"})
    log_lines(server, request_id=f"after-{status}")
    assert server.log.read_text().count("traceback") == before
    counted, found = ("http_requests_refused_total", str(status)), samples(server.client)
    assert found[counted] == refused[counted] + 1


def test_an_invalid_body_changes_nothing_in_a_response_that_has_begun(generous):
    with connected(generous) as connection:
        connection.sendall(WASM.replace(b"Connection: close", b"Transfer-Encoding: chunked"))
        received = connection.recv(1000)
        connection.sendall(b"zz\r\n" + HEALTH)
        received += until_closed(connection)
    assert len(received.partition(b"\r\n\r\n")[2]) == WASM_BYTES


def test_pipelined_requests_are_not_all_parsed_at_once(serve, model_path):
    """Parsed requests take a hundred times the memory."""
    tiny = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10_000
    with serve(JAXCNN_MODEL=str(model_path)) as server, contextlib.ExitStack() as stack:
        before = resident(server)
        for _ in range(5):
            connection = stack.enter_context(connected(server))
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):  # The server reads no further.
                connection.sendall(tiny * 100)
        start = time.monotonic()
        assert server.client.get("/healthz").status_code == 200
        assert time.monotonic() - start < 5
        assert resident(server) < before + 20e6


def resident(server) -> float:
    text = server.client.get("/metrics").text
    return float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[1])


def test_a_head_after_a_large_body_is_not_counted_with_it(server):
    body = PICTURE + bytes(200_000 - len(PICTURE))
    for _ in range(5):
        with connected(server) as connection:
            connection.sendall(head(f"Content-Length: {len(body)}") + body + HEALTH[:10])
            time.sleep(0.05)
            connection.sendall(HEALTH[10:-2] + b"Connection: close\r\n\r\n")
            assert statuses(until_closed(connection)) == [200, 200]


# Trailers


def test_trailers_are_not_headers(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_API_KEYS="secretsecret") as server, connected(server) as connection:
        start = head("Transfer-Encoding: chunked", "Connection: close") + b"%x\r\n" % len(PICTURE) + PICTURE
        connection.sendall(start + b"\r\n0\r\nX-API-Key: secretsecret\r\n\r\n")
        assert statuses(until_closed(connection)) == [401]


@pytest.mark.parametrize("line", [b"a: b\r\n", b"a"], ids=["lines", "a line"])
@pytest.mark.parametrize("path", ["/predict", "/healthz"])
def test_trailers_without_end_are_refused(server, line, path):
    with connected(server) as connection:
        connection.sendall(head("Transfer-Encoding: chunked", path=path) + b"1\r\nx\r\n0\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(line * (10_000 // len(line)))
        assert statuses(until_closed(connection)) in ([400], [405], [])


def test_chunks_of_all_sizes_are_read(server):
    with connected(server) as connection:
        pieces = [PICTURE[:1], PICTURE[1:50], PICTURE[50:], *[bytes(1000)] * 300]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        connection.sendall(head("Transfer-Encoding: chunked", "Connection: close") + body + b"0\r\nX-Sum: 1\r\n\r\n")
        assert statuses(until_closed(connection)) == [200]
