"""Limits, disks, slow headers and shutdowns, with one server per test."""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from ports import free_port

from export.seal import seal
from server.app import create_app
from server.errors import StartError
from tests.server.wire import (
    YELLOW,
    ask_until_unready,
    encode,
    error,
    head,
    inherited,
    log_lines,
    post,
    read_answer,
    text,
    wait_until,
)

pytestmark = pytest.mark.run

ROOT = Path(__file__).parents[2]
PICTURE = encode((250, 0, 0))
ENCODED = 'jaxcnn_stage_duration_seconds_count{model="slow",stage="encode"}'


@pytest.fixture(scope="session")
def slow_model(model_builder, tmp_path_factory):
    """A model that takes some tenths of a second."""
    return model_builder(tmp_path_factory.mktemp("slow") / "slow.onnx", work=30)


@pytest.fixture
def serve_slowly(serve, slow_model):
    def start(**settings: str):
        return serve(JAXCNN_MODEL=str(slow_model), JAXCNN_THREADS="1", JAXCNN_MAX_BATCH="1", **settings)

    return start


@pytest.fixture
def serve_on(start):
    """Serves with a file descriptor as the log, so that the port cannot be read from it."""

    @contextlib.contextmanager
    def serve(descriptor: int, **settings: str):
        port = free_port()
        process = start(descriptor, port=port, **settings)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                wait_until(lambda: answers(client))
                yield client
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0

    return serve


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def metric(client: httpx.Client, line: str) -> float:
    """Returns the value of the line of /metrics that starts with `line`; 0 if there is none."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_passed_deadline_is_504(serve_slowly):
    with serve_slowly(JAXCNN_DEADLINE_MS="200") as server:
        post(
            server.client, b"no picture"
        )  # The first request loads Pillow's plugins, and would not reach the model in time.
        for done in (1, 2):  # The second is not refused because of the first.
            response = post(server.client, PICTURE)
            assert response.status_code == 504
            assert error(response).startswith("The answer took longer than 0.2 s: ")
            wait_until(lambda: metric(server.client, ENCODED) == done)  # noqa: B023
            time.sleep(0.1)


def test_a_request_that_would_miss_its_deadline_is_503_at_once(serve_slowly):
    with serve_slowly() as server:
        taken = min(timed_post(server.port)[1] for _ in range(2))
    deadline = round(8 * 1000 * taken)  # Several are in time, even if they slow each other down.
    with serve_slowly(JAXCNN_DEADLINE_MS=str(deadline)) as server, ThreadPoolExecutor(40) as threads:
        assert post(server.client, PICTURE).status_code == 200  # Now the server knows how long a request takes.
        answers = [answer.result() for answer in [threads.submit(timed_post, server.port) for _ in range(40)]]
        refused = [(seconds, int(retry)) for status, seconds, retry in answers if status == 503]
        assert all(seconds < 1 and retry >= 1 for seconds, retry in refused)
        assert sum(status == 200 for status, _, _ in answers) >= 3
        assert metric(server.client, 'jaxcnn_shed_total{model="slow",reason="deadline"}') == len(refused) >= 3


def test_abandoned_work_stops(serve, model_path):
    hostile = encode((250, 0, 0), "WEBP", (5000, 5000))  # Takes most of a second to decode.
    settings = {"JAXCNN_THREADS": "1", "JAXCNN_DEADLINE_MS": "1000", "JAXCNN_MAX_REQUEST_PIXELS": "2000000000"}
    with serve(JAXCNN_MODEL=str(model_path), **settings) as server:
        assert server.client.post("/predict", json={"images": [text(hostile)] * 32}).status_code == 504
        start = time.monotonic()
        wait_until(lambda: post(server.client, PICTURE).status_code == 200)
        assert time.monotonic() - start < 8  # All 32 take half a minute.
        assert metric(server.client, 'jaxcnn_batch_size_count{model="colours"}') == 1


def test_a_shutdown_does_not_wait_for_abandoned_work(serve, model_path):
    settings = {
        "JAXCNN_THREADS": "3",  # Two for large pictures.
        "JAXCNN_DEADLINE_MS": "100",
        "JAXCNN_MAX_PIXELS": "89000000",
        "JAXCNN_MAX_REQUEST_PIXELS": "200000000",
        "JAXCNN_MAX_DECODE_BYTES": "4000000000",
    }
    with serve(JAXCNN_MODEL=str(model_path), **settings) as server, ThreadPoolExecutor(2) as threads:
        picture = encode((250, 0, 0), "WEBP", (9400, 9400))
        for answer in [threads.submit(post, server.client, picture, "image/webp") for _ in range(2)]:
            assert answer.result().status_code == 504
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0  # Both threads are still decoding.
        assert "Application shutdown complete." in server.log.read_text()
        assert not re.search("Traceback|Fatal|terminate", server.log.read_text())


def timed_post(port: int) -> tuple[int, float, str]:
    # Without certificates: loading them for forty clients keeps the cores busy for seconds.
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, verify=False) as client:
        start = time.monotonic()
        response = post(client, PICTURE)
        return response.status_code, time.monotonic() - start, response.headers.get("retry-after", "0")


@pytest.mark.parametrize("next_request", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["alone", "pipelined"])
def test_a_client_that_disconnects_leaves_the_queue(serve_slowly, next_request):
    with serve_slowly() as server, ThreadPoolExecutor(2) as threads:
        first = threads.submit(timed_post, server.port)
        wait_until(lambda: metric(server.client, "http_requests_in_progress") == 2)  # The slow request, and this one.
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(head(f"Content-Length: {len(PICTURE)}") + PICTURE + next_request)
            wait_until(lambda: metric(server.client, 'jaxcnn_queue_depth{model="slow"}') == 1)
        last = threads.submit(timed_post, server.port)
        assert (first.result()[0], last.result()[0]) == (200, 200)
        assert metric(server.client, 'jaxcnn_queue_wait_seconds_count{model="slow"}') == 2
        log_lines(server, status=499)
        assert not [line for line in log_lines(server) if line["level"] == "error"]


def test_health_checks_respond_while_all_threads_work(serve_slowly):
    with serve_slowly(JAXCNN_DEADLINE_MS="60000") as server, ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(timed_post, server.port) for _ in range(4)]
        wait_until(lambda: metric(server.client, 'jaxcnn_queue_depth{model="slow"}') >= 2)
        for path in ("/healthz", "/readyz", "/ping", "/v2/health/ready"):
            start = time.monotonic()
            assert server.client.get(path).status_code == 200
            assert time.monotonic() - start < 0.4
        assert [answer.result()[0] for answer in answers] == [200] * 4


def is_refused_beside_chunks(server, picture: bytes) -> bool:
    """Returns whether a request is refused while a chunked one holds memory; either may be first."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as chunked:
        chunked.sendall(head("Transfer-Encoding: chunked") + b"15f90\r\n" + bytes(90_000) + b"\r\n")
        time.sleep(0.1)
        return post(server.client, picture).status_code == 503


def test_bodies_share_a_bounded_memory(serve, model_path):
    limits = {"JAXCNN_MAX_BODY_BYTES": "100000", "JAXCNN_MAX_BUFFER_BYTES": "150000"}
    with serve(JAXCNN_MODEL=str(model_path), **limits) as server:
        picture = PICTURE + bytes(100_000 - len(PICTURE))
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(head("Content-Length: 100000", "Expect: 100-continue"))
            assert slow.recv(100).startswith(b"HTTP/1.1 100")
            slow.sendall(picture[:90_000])
            wait_until(lambda: post(server.client, picture).status_code == 503)
            response = post(server.client, picture)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert post(server.client, PICTURE).status_code == 200  # There is room for a small body.
            slow.sendall(picture[90_000:])
            assert read_answer(slow)[0] == 200
        wait_until(lambda: is_refused_beside_chunks(server, picture))
        wait_until(lambda: post(server.client, picture).status_code == 200)
        assert metric(server.client, 'jaxcnn_shed_total{model="colours",reason="bytes"}') >= 2


def test_declared_bodies_take_no_memory(serve, model_path):
    limits = {"JAXCNN_MAX_BODY_BYTES": "100000", "JAXCNN_MAX_BUFFER_BYTES": "150000"}
    with serve(JAXCNN_MODEL=str(model_path), **limits) as server, contextlib.ExitStack() as stack:
        for _ in range(6):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            idle.sendall(head("Content-Length: 100000", "Expect: 100-continue"))
            assert idle.recv(100).startswith(b"HTTP/1.1 100")
        assert post(server.client, PICTURE + bytes(100_000 - len(PICTURE))).status_code == 200


def test_a_body_that_arrives_at_once_is_counted(serve, slow_model):
    """Two bodies wait for the model, in a memory that holds one of them."""
    limits = {"JAXCNN_MAX_BODY_BYTES": "10000", "JAXCNN_MAX_BUFFER_BYTES": "15000"}
    with serve(JAXCNN_MODEL=str(slow_model), **limits) as server, ThreadPoolExecutor(4) as threads:
        picture = PICTURE + bytes(10_000 - len(PICTURE))
        answers = [threads.submit(post, server.client, picture) for _ in range(4)]
        assert {answer.result().status_code for answer in answers} == {200, 503}


def test_a_full_server_answers_503_and_stays_healthy(serve_slowly):
    with serve_slowly(JAXCNN_MAX_REQUESTS="1") as server, ThreadPoolExecutor(1) as threads:
        slow = threads.submit(timed_post, server.port)
        wait_until(lambda: metric(server.client, "http_requests_in_progress") == 2)  # The slow request, and this one.
        response = post(server.client, PICTURE)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        error(response)
        assert server.client.get("/healthz").status_code == 200
        assert slow.result()[0] == 200
        for broken in (b"", b"no picture", encode(YELLOW)):
            assert post(server.client, broken).status_code in (400, 500)
        assert post(server.client, PICTURE).status_code == 200  # All places have been released.


def test_incomplete_bodies_take_no_place_in_the_queue(serve, model_path):
    with (
        serve(JAXCNN_MODEL=str(model_path), JAXCNN_MAX_REQUESTS="1") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow,
    ):
        slow.sendall(head(f"Content-Length: {len(PICTURE)}", "Expect: 100-continue"))
        assert slow.recv(100).startswith(b"HTTP/1.1 100")
        assert post(server.client, PICTURE).status_code == 200
        slow.sendall(PICTURE)
        assert read_answer(slow)[0] == 200


def test_a_body_that_completes_when_the_queue_is_full_is_503(serve_slowly):
    with serve_slowly(JAXCNN_MAX_REQUESTS="1") as server, ThreadPoolExecutor(1) as threads:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(head(f"Content-Length: {len(PICTURE)}", "Expect: 100-continue"))
            assert slow.recv(100).startswith(b"HTTP/1.1 100")
            first = threads.submit(timed_post, server.port)
            wait_until(lambda: metric(server.client, "http_requests_in_progress") == 3)  # Both, and this one.
            slow.sendall(PICTURE)
            assert read_answer(slow)[0] == 503
        assert first.result()[0] == 200


@pytest.mark.parametrize("is_list", [False, True])
def test_refused_pictures_leave_no_memory_behind(serve, model_path, is_list):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_THREADS="1") as server:
        cut = encode((250, 0, 0), "PNG", (3000, 3000))[:-200]

        def refuse() -> float:
            response = server.client.post("/predict", json={"images": [text(cut)]} if is_list else {"image": text(cut)})
            assert "damaged or truncated" in error(response)
            return metric(server.client, "process_resident_memory_bytes")

        before = max(refuse() for _ in range(3))
        assert max(refuse() for _ in range(8)) < before + 50e6  # Each picture takes 27 MB while it is decoded.


def test_a_slow_body_is_408(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_READ_SECONDS="1") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(head("Content-Length: 1000") + b"\x89PNG")
            response = b"".join(iter(lambda: slow.recv(65536), b""))
            assert response.startswith(b"HTTP/1.1 408")
            assert b"\r\nconnection: close\r\n" in response.lower()
            assert list(json.loads(response.partition(b"\r\n\r\n")[2])) == ["error"]
        assert post(server.client, encode((0, 0, 0))).status_code == 200


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"JAXCNN_MODEL": "/absent/model.onnx"},
            r"The model /absent/model\.onnx is not a file: set JAXCNN_MODEL to .*",
        ),
        (
            {"JAXCNN_MODEL": f"/{'x' * 300}"},
            r"The model /x{300} cannot be served: it cannot be read \(File name too long\)\. Set JAXCNN_MODEL to .*",
        ),
        (
            {"JAXCNN_ONNXRUNTIME_WEB": f"/{'x' * 300}"},
            r"JAXCNN_ONNXRUNTIME_WEB is '/x{300}', .* \(File name too long\): set it to the `dist` folder of .*",
        ),
        (
            {"JAXCNN_MODEL": "pyproject.toml"},
            r"The model pyproject\.toml cannot be served: onnxruntime cannot open it .*",
        ),
        (
            {"JAXCNN_MODEL": "{failing}"},
            r"The model .* cannot be served: it fails on a batch of 4 black pictures .*",
        ),
        (
            {"JAXCNN_MODEL": "{damaged}"},
            r"The model .* cannot be served: it is damaged: its metadata .* not valid UTF-8\. .*",
        ),
        (
            {"JAXCNN_THREADS": "many"},
            r"JAXCNN_THREADS is 'many': set it to an integer from 1 to 256, or unset it\.",
        ),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(start, model_builder, tmp_path, environment, line):
    log = tmp_path / "log"
    failing = model_builder(tmp_path / "failing.onnx", rows=1)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model_builder(damaged).read_bytes().replace(b"stretch", b"stre\xffch"))
    process = start(log, **{key: value.format(failing=failing, damaged=damaged) for key, value in environment.items()})
    assert process.wait(timeout=30) != 0
    wrong, end = (line for line in log.read_text().splitlines() if not line.startswith("INFO:"))
    assert re.fullmatch(f"ERROR: +{line}", wrong)
    assert re.fullmatch("ERROR: +Application startup failed. Exiting.", end)


def test_a_server_whose_connections_are_not_bounded_is_not_started(start, model_path, tmp_path):
    log = tmp_path / "log"
    process = start(log, JAXCNN_MODEL=str(model_path), UVICORN_HTTP="h11")
    assert process.wait(timeout=30) != 0
    wrong, end = (line for line in log.read_text().splitlines() if not line.startswith("INFO:"))
    assert re.fullmatch(r"ERROR: +This application bounds the connections of uvicorn with httptools, .*", wrong)
    assert re.fullmatch("ERROR: +Application startup failed. Exiting.", end)


def test_another_asgi_server_is_refused_in_one_line(model_path, monkeypatch):
    monkeypatch.setenv("JAXCNN_MODEL", str(model_path))
    sent: list[dict[str, str]] = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    with pytest.raises(StartError):
        asyncio.run(create_app()({"type": "lifespan", "state": {}}, receive, send))
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert re.fullmatch(r"This application bounds .* run it as `uvicorn server\.app:app`, in .*", message["message"])


# Signals


def test_sighup_serves_a_new_model_file_and_ends_nothing(serve, model_builder, tmp_path):
    path = model_builder(tmp_path / "model.onnx")
    with serve(JAXCNN_MODEL=str(path)) as server:
        server.process.send_signal(signal.SIGHUP)
        log_lines(server, message="SIGHUP: checking whether the model files have changed")
        assert post(server.client, PICTURE).json()["predicted_class"] == "red"
        names = {"names": ["a", "b", "c", "d", "e"]}
        model_builder(tmp_path / "new.onnx", metadata=names).replace(path)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: post(server.client, PICTURE).json()["predicted_class"] == "a")


def test_a_damaged_new_model_file_keeps_the_old_model(serve, model_builder, tmp_path):
    path = model_builder(tmp_path / "model.onnx")
    with serve(JAXCNN_MODEL=str(path), JAXCNN_RELOAD_SECONDS="1") as server:
        new = seal(model_builder(tmp_path / "new.onnx", metadata={"names": ["a", "b", "c", "d", "e"]}).read_bytes())
        weight = np.float32(10 / 255).tobytes()
        damaged = tmp_path / "damaged.onnx"
        damaged.write_bytes(new.replace(weight, bytes(byte ^ 1 for byte in weight)))
        damaged.replace(path)
        wait_until(lambda: "warning" in server.client.get("/readyz").json())
        ready = server.client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["warning"].startswith("The new model file was rejected, and the old model is still served")
        (line,) = log_lines(server, level="error")
        assert "it is damaged, or was edited: it differs from the checksum at its end" in line["message"]
        assert post(server.client, PICTURE).json()["predicted_class"] == "red"
        damaged.write_bytes(new)
        damaged.replace(path)
        wait_until(lambda: post(server.client, PICTURE).json()["predicted_class"] == "a")
        assert server.client.get("/readyz").json() == {"status": "ready"}


# Disks


@pytest.mark.parametrize("closed", ["1", "1 2"])
def test_closed_standard_streams_stop_nothing(model_path, closed):
    port = free_port()
    close = " ".join(f"{stream}>&-" for stream in closed.split())
    command = f"exec {sys.executable} -m uvicorn server.app:app --port {port} --no-use-colors {close}"
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**inherited(), "JAXCNN_MODEL": str(model_path), "JAXCNN_DRAIN_SECONDS": "0"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            wait_until(lambda: answers(client))
            assert post(client, PICTURE).json()["predicted_class"] == "red"
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_a_full_disk_under_the_log_stops_nothing(serve_on, model_path):
    with open("/dev/full", "wb") as full, serve_on(full.fileno(), JAXCNN_MODEL=str(model_path)) as client:
        for _ in range(20):
            assert post(client, PICTURE).status_code == 200
        assert post(client, encode(YELLOW)).status_code == 500
        time.sleep(0.2)
        assert post(client, PICTURE).status_code == 200


def test_a_log_that_nobody_reads_stops_nothing(serve_on, model_path):
    reader, writer = os.pipe()  # A pipe holds 64 kB.
    with serve_on(writer, JAXCNN_MODEL=str(model_path)) as client:
        for _ in range(600):
            assert client.get("/healthz", headers={"X-Request-ID": "x" * 128}).status_code == 200
    os.close(reader)
    os.close(writer)


def test_the_server_writes_no_files(serve_on, model_path):
    """As on a read-only file system; this limit holds for root as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        reader, writer = os.pipe()
        with serve_on(writer, JAXCNN_MODEL=str(model_path)) as client:
            files = [("images", (f"{i}.png", PICTURE + bytes(1_500_000))) for i in range(4)]
            response = client.post("/predict", files=files)
            assert [result["predicted_class"] for result in response.json()] == ["red"] * 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    os.close(reader)
    os.close(writer)


# Request heads


@pytest.mark.parametrize("first", [False, True], ids=["at once", "after a request"])
def test_endless_headers_are_refused(serve, model_path, first):
    with serve(JAXCNN_MODEL=str(model_path)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as endless:
            if first:
                endless.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                assert read_answer(endless)[0] == 200
            endless.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: ")
            answer = b""
            with contextlib.suppress(ConnectionError):
                for _ in range(2000):
                    endless.sendall(b"x" * 10_000)
            with contextlib.suppress(ConnectionError):
                answer = endless.recv(65536)
            assert answer == b"" or answer.startswith(
                b"HTTP/1.1 400"
            )  # A reset by the unread data may cut the response off.
        assert metric(server.client, "process_resident_memory_bytes") < 120e6
        assert post(server.client, PICTURE).status_code == 200


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"NOT HTTP\r\n\r\n", "Invalid HTTP request: check its request line and headers."),
        (b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n", "Invalid HTTP request: check its request line and headers."),
        (
            b"GET /healthz HTTP/1.1\r\nX-Long: " + bytes([120]) * 65_600,
            "The headers are longer than 65536 bytes: send fewer.",
        ),
    ],
    ids=["no request", "no header", "long header"],
)
def test_invalid_http_is_refused_in_json(server, sent, complaint):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode("ascii").split("\r\n")
    assert status == "HTTP/1.1 400 Bad Request"
    assert {"content-type: application/json", "connection: close", f"content-length: {len(body)}"} <= {*headers}
    assert json.loads(body) == {"error": complaint}


def test_long_headers_within_the_limit_are_read(client):
    assert client.get("/healthz", headers={"X-Long": "x" * 50_000}).status_code == 200


@pytest.mark.parametrize(
    ("start", "answer"),
    [(b"", b""), (b"GET / HT", b"HTTP/1.1 408"), (b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"HTTP/1.1 408")],
)
def test_a_slow_head_ends_the_connection(serve, model_path, start, answer):
    settings = {"JAXCNN_MODEL": str(model_path), "JAXCNN_READ_SECONDS": "1"}
    with serve(**settings) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(start)
        received = b"".join(iter(lambda: slow.recv(65536), b""))  # Until the server closes.
        assert received[:12] == answer


def test_a_kept_connection_does_not_count_as_slow(serve, model_path):
    settings = {"JAXCNN_MODEL": str(model_path), "JAXCNN_READ_SECONDS": "1"}
    with serve(**settings) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as kept:
        for _ in range(3):
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(kept)[0] == 200
            time.sleep(0.6)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_shutdown_finishes_accepted_requests(serve, model_path, signal_number):
    with serve(JAXCNN_MODEL=str(model_path)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(head(f"Content-Length: {len(PICTURE)}", "Expect: 100-continue"))
            assert slow.recv(100).startswith(b"HTTP/1.1 100")
            server.process.send_signal(signal_number)
            while "Shutting down" not in server.log.read_text():
                time.sleep(0.02)
            slow.sendall(PICTURE)
            assert read_answer(slow)[0] == 200
        assert server.process.wait(timeout=30) == 0
        assert "Application shutdown complete." in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_a_new_connection_may_send_its_request_when_the_server_shuts_down(serve, model_path):
    """Otherwise a client that is busy for a moment after it has connected would get no response."""
    with (
        serve(JAXCNN_MODEL=str(model_path)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
    ):
        server.process.send_signal(signal.SIGTERM)
        log_lines(server, message="Shutting down")
        time.sleep(0.5)
        connection.sendall(head(f"Content-Length: {len(PICTURE)}") + PICTURE)
        assert read_answer(connection)[0] == 200


def test_sigterm_first_turns_readiness_off(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_DRAIN_SECONDS="2") as server:
        assert "connection" not in post(server.client, PICTURE).headers
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.client.get("/readyz").status_code == 503)
        assert server.client.get("/readyz").json() == {"status": "draining"}
        assert server.client.get("/healthz").status_code == 200
        assert server.client.get("/ping").status_code == 503
        assert server.client.get("/v2/health/ready").json() == {"live": True, "ready": False}
        assert server.client.get("/v2/models/colours/ready").status_code == 503
        late = post(server.client, PICTURE)  # It is served, and asked to reconnect.
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert server.process.wait(timeout=30) == 0


def test_a_second_sigterm_ends_the_grace_period(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_DRAIN_SECONDS="3600") as server:
        server.process.send_signal(signal.SIGTERM)
        log_lines(server, message="SIGTERM: not ready any more, shutting down in 3600 seconds")
        time.sleep(1.1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0


def test_sigterm_twice_at_once_is_one(serve, model_path):
    """A uvicorn worker gets the signal from the service manager and from its parent."""
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_DRAIN_SECONDS="3") as server:
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            log_lines(server, message="SIGTERM: not ready any more, shutting down in 3 seconds")
        time.sleep(1.5)
        assert server.client.get("/readyz").status_code == 503
        assert server.process.wait(timeout=30) == 0


def test_sigterm_does_not_wait_for_a_model_that_is_being_loaded(serve, model_builder, tmp_path):
    path = model_builder(tmp_path / "served.onnx")
    slow = model_builder(tmp_path / "slow.onnx", work=5)
    # The thread is in onnxruntime, and comes back to Python after each of many runs.
    with serve(JAXCNN_MODEL=str(path), JAXCNN_MAX_BATCH="64") as server:
        slow.replace(path)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert post(server.client, PICTURE).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=5) == 0
        log_lines(server, message="Application shutdown complete.")
        assert "serving a new file" not in server.log.read_text()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the system cannot limit another process")
def test_sigterm_ends_a_server_without_a_descriptor_left(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_DRAIN_SECONDS="1") as server, contextlib.ExitStack() as stack:
        assert server.client.get("/readyz").status_code == 200  # This connection stays open.
        limit = 1 + max(int(path.name) for path in Path(f"/proc/{server.process.pid}/fd").iterdir())
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        for _ in range(limit):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0


def test_sigterm_under_load_loses_nothing(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_DRAIN_SECONDS="1") as server:
        lost: list[Exception] = []
        clients = [threading.Thread(target=ask_until_unready, args=(server.port, lost)) for _ in range(8)]
        for client in clients:
            client.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join()
        assert lost == []
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()


def test_two_workers_reset_no_connection_at_sigterm(model_path):
    """The system would complete one after the last worker has ended, and reset it when the parent process ends."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "server.app:app", "--port", str(port), "--workers", "2"]
    settings = {"JAXCNN_MODEL": str(model_path), "JAXCNN_DRAIN_SECONDS": "1", "JAXCNN_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env={**inherited(), **settings}, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: connect_and_ask(port) == "answered")
        time.sleep(2)  # Until the second worker is there, too.
        with ThreadPoolExecutor(8) as threads:
            found = [threads.submit(ask_until_refused, port) for _ in range(8)]
            time.sleep(0.5)
            process.terminate()
            assert process.wait(timeout=30) == 0
            assert sum(answer.result() for answer in found) == 0
    finally:
        process.kill()


def connect_and_ask(port: int) -> str:
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    except ConnectionRefusedError:
        return "refused"
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        if b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 200"):
            return "answered"
    return "reset"


def ask_until_refused(port: int) -> int:
    """Asks over a new connection each time; returns how many of them were reset."""
    resets = 0
    while (found := connect_and_ask(port)) != "refused":
        resets += found == "reset"
        time.sleep(0.02)
    return resets
