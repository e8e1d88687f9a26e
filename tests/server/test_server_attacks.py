"""A few clients that ask for too much: nobody else notices."""

import contextlib
import functools
import gzip
import re
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.test_server_connection import connected, resident
from tests.server.wire import encode, error, head, post, read_answer, text

pytestmark = pytest.mark.run

PICTURE = encode((250, 0, 0))
WASM_BYTES = 40_000_000


@functools.cache
def hostile(size: int = 5000) -> bytes:
    """Encodes a picture of a few bytes that takes a second and 400 MB to decode."""
    return encode((0, 0, 0), "WEBP", (size, size))


def peak(server) -> int:
    """Returns the most memory that the server had in use, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1])


def worst(server, seconds: float, path: str = "/predict") -> float:
    """Sends requests for some seconds, which all have to succeed; returns the longest time of one."""
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        response = post(server.client, PICTURE) if path == "/predict" else server.client.get(path)
        assert response.status_code == 200, response.text
        longest = max(longest, time.monotonic() - start)
    return longest


# Pictures


@pytest.mark.parametrize("count", [3, 4])
def test_pictures_that_cost_too_much_together_are_refused_before_any_is_decoded(server, count):
    images = {"images": [text(hostile())] * count}
    before = resident(server)
    response = server.client.post("/predict", json=images)
    assert response.status_code == 413
    assert "would take as long as" in error(response)
    assert resident(server) < before + 20e6


def test_a_picture_that_needs_more_memory_than_there_is_is_refused(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_MAX_DECODE_BYTES="20000000") as server:
        response = post(server.client, hostile(1100), "image/webp")
        assert response.status_code == 400
        assert "bytes, and there are 20000000: scale it down" in error(response)
        assert post(server.client, hostile(500), "image/webp").status_code == 200


def test_large_pictures_hold_up_no_small_ones_and_share_the_memory(serve, model_path):
    over = threading.Event()

    def attack(port: int) -> set[int]:
        images, found = {"images": [text(hostile())] * 2}, set()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            while not over.is_set():
                found.add(client.post("/predict", json=images).status_code)
        return found

    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_THREADS="2") as server, ThreadPoolExecutor(4) as threads:
        attacks = [threads.submit(attack, server.port) for _ in range(4)]
        try:
            time.sleep(1)
            assert worst(server, 8) < 2
            assert resident(server) < 800e6
        finally:
            over.set()
        assert set().union(*(attack.result() for attack in attacks)) <= {200, 503, 504}


def png_with_texts(count: int) -> bytes:
    """Builds a PNG with texts of a kilobyte, each of which takes 4 MB once inflated."""
    text = zlib.compress("\N{GRINNING FACE}".encode() + b"a" * (2**20 - 4))
    contents = [b"iTXtkey %d\0\1\0\0\0" % i + text for i in range(count)]
    chunks = [
        struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content)) for content in contents
    ]
    return PICTURE[:33] + b"".join(chunks) + PICTURE[33:]


def test_texts_in_pictures_take_no_memory(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path)) as server:
        images = {"images": [text(png_with_texts(60))] * 32}
        assert server.client.post("/predict", json={"images": [text(PICTURE)] * 32}).status_code == 200
        before = resident(server)
        assert server.client.post("/predict", json=images).status_code == 200
        assert peak(server) < before + 40e6  # Inflated, they take 8 GB.


# Bodies


def test_small_bodies_of_much_json_take_little_memory(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path)) as server:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert post(server.client, PICTURE).status_code == 200
        before = resident(server)
        for path in ("/predict", "/v2/models/colours/infer"):
            for filling in (b"[],", b'{"":0},', b"0,"):
                body = gzip.compress(b'{"image":"QQ==","a":[' + filling * (10_000_000 // len(filling)) + b"0]}")
                assert server.client.post(path, content=body, headers=headers).status_code == 413
        assert peak(server) < before + 40e6  # Parsed, one takes 270 MB.


def test_bodies_that_trickle_make_room_for_others(serve, model_path):
    limits = {"JAXCNN_MAX_BODY_BYTES": "100000", "JAXCNN_MAX_BUFFER_BYTES": "400000"}
    with serve(JAXCNN_MODEL=str(model_path), **limits) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(4)]
        for connection in slow:
            connection.sendall(head("Content-Length: 100000") + bytes(87_000))
        end = time.monotonic() + 4
        while time.monotonic() < end:
            for connection in slow:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"x")
            assert post(server.client, PICTURE).status_code == 200
            time.sleep(0.2)
        assert post(server.client, PICTURE + bytes(80_000)).status_code == 200
        refused = [connection for connection in slow if is_refused(connection)]
        assert len(refused) == 1
        assert 'jaxcnn_shed_total{model="colours",reason="evicted"} 1.0' in server.client.get("/metrics").text


def is_refused(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return read_answer(connection)[0] == 503
    except TimeoutError:
        return False


def test_a_body_below_the_lowest_rate_is_408(serve, model_path):
    settings = {"JAXCNN_MODEL": str(model_path), "JAXCNN_MIN_BYTES_PER_SECOND": "1000000"}
    with serve(**settings) as server, connected(server) as slow:
        slow.sendall(head("Content-Length: 100000") + bytes(50_000))
        start = time.monotonic()
        status, content = read_answer(slow)
        assert status == 408
        assert "or at 1000000 bytes per second" in content["error"]
        assert 4 < time.monotonic() - start < 15  # A body may take 30 s.


# Downloads


def test_downloads_that_nobody_reads_take_little_memory_and_make_room(serve, model_path, tmp_path):
    with (tmp_path / "ort-wasm-simd-threaded.wasm").open("wb") as file:
        file.truncate(WASM_BYTES)
    (tmp_path / "ort.wasm.min.mjs").touch()
    settings = {"JAXCNN_MODEL": str(model_path), "JAXCNN_ONNXRUNTIME_WEB": str(tmp_path)}
    with serve(**settings) as server, contextlib.ExitStack() as stack:
        before = resident(server)
        for _ in range(100):
            idle = stack.enter_context(connected(server))
            idle.sendall(b"GET /onnxruntime-web/ort-wasm-simd-threaded.wasm HTTP/1.1\r\nHost: a\r\n\r\n")
        assert worst(server, 1, "/healthz") < 1
        assert resident(server) < before + 20e6
        end = time.monotonic() + 30
        while (found := server.client.get("/onnxruntime-web/ort-wasm-simd-threaded.wasm")).status_code != 200:
            assert (found.status_code, found.headers["retry-after"]) == (503, "1")
            assert time.monotonic() < end
            time.sleep(0.5)
        assert len(found.content) == WASM_BYTES


def test_what_is_always_the_same_is_made_once_and_not_sent_again(server):
    for path in ("/", "/docs", "/openapi.json", "/page/page.js", "/model.json"):
        first = server.client.get(path)
        etag = first.headers["etag"]
        for known in (etag, f'"other", W/{etag}', "*"):
            again = server.client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert server.client.get(path, headers={"If-None-Match": '"other"'}).content == first.content


def test_metrics_are_rendered_once_for_all_who_wait(server):
    def ask(_: int) -> int:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.port}", timeout=30, trust_env=False, verify=False
        ) as client:
            return sum(client.get("/metrics").status_code == 200 for _ in range(5))

    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(ask, range(8))
        assert worst(server, 0.5, "/healthz") < 1
        assert list(answers) == [5] * 8
