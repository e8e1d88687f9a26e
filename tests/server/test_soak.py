"""Long tests: floods of malformed requests, many shutdowns, many reloads.

Run them with `python -m pytest -m slow -n 0 tests/server`.
"""

import os
import shutil
import signal
import socket
import threading
import time
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.wire import COLOURS, ask_until_unready, encode, log_lines, post, text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PICTURE = encode(COLOURS["red"])
SEEDS = [PICTURE, *(encode(COLOURS["blue"], kind) for kind in ("JPEG", "GIF", "BMP", "WEBP", "AVIF"))]
TYPES = ["application/json", "image/png", "application/octet-stream", "multipart/form-data; boundary=b", "text/plain"]
PATHS = [
    "/predict",
    "/invocations",
    "/v2/models/colours/infer",
    "/v2/models/colours/versions/1/infer",
    "/v2/models/colours",
    "/metrics",
    "/",
    "/docs",
    "/page/page.js",
    "/model.onnx",
]


def damaged(data: bytes, changes: list[tuple[float, int]], end: float) -> bytes:
    content = bytearray(data)
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    return bytes(content[: int(end * len(content)) + 1])


FILES = st.builds(
    damaged,
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.just(1.0) | st.floats(0, 1),
)
BODIES = (
    FILES
    | st.binary()
    | FILES.map(lambda data: f'{{"image": "{text(data)}"}}'.encode())
    | FILES.map(lambda data: f'{{"images": ["{text(data)}", "{text(PICTURE)}"]}}'.encode())
    | FILES.map(
        lambda data: (
            f'{{"inputs": [{{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["{text(data)}"]}}]}}'.encode()
        )
    )
    | FILES.map(
        lambda data: (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--b--\r\n"
        )
    )
)


def test_ten_thousand_malformed_requests(serve, model_path):
    statuses: set[int] = set()

    @settings(max_examples=10_000, suppress_health_check=[HealthCheck.too_slow])
    @given(
        method=st.sampled_from(["POST"] * 8 + ["GET", "PUT", "OPTIONS"]),
        path=st.sampled_from(PATHS),
        query=st.sampled_from(["", "?top_k=2", "?heatmap=true"])
        | st.text(st.characters(codec="utf-8"), max_size=5).map(lambda value: f"?top_k={quote(value)}"),
        content_type=st.sampled_from(TYPES) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
        json_size=st.none() | st.integers(-1, 300) | st.text(st.characters(min_codepoint=33, max_codepoint=126)),
        body=BODIES,
    )
    def send(method, path, query, content_type, json_size, body):
        headers = {"Content-Type": content_type.strip()}
        if json_size is not None:
            headers["Inference-Header-Content-Length"] = str(json_size)
        response = server.client.request(method, path + query, content=body, headers=headers)
        assert response.status_code < 500 or response.status_code in (503, 504), response.text
        statuses.add(response.status_code)

    with serve(JAXCNN_MODEL=str(model_path)) as server:
        send()
        assert {200, 400, 404, 405, 415} - {404} <= statuses
        assert server.process.poll() is None
        assert not [line for line in log_lines(server) if "traceback" in line]


@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary()
    | st.lists(
        st.sampled_from(
            [
                b"POST /predict HTTP/1.1\r\n",
                b"GET / HTTP/1.0\r\n",
                b"Host: a\r\n",
                b"Content-Length: 5\r\n",
                b"Content-Length: -1\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Expect: 100-continue\r\n",
                b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
                b"Content-Type: image/png\r\n",
                b"\r\n",
                b"ffffffffff\r\n",
                b"0\r\n\r\n",
                b"\0",
            ]
        )
    ).map(b"".join)
)
def test_malformed_http_never_ends_the_server(server, data):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b" 500 " not in answer.split(b"\r\n", 1)[0]
    assert server.client.get("/healthz").status_code == 200


def test_twenty_sigterms_under_load(serve, model_path):
    for number in range(20):
        with serve(JAXCNN_MODEL=str(model_path), JAXCNN_DRAIN_SECONDS="1") as server:
            lost: list[Exception] = []
            clients = [threading.Thread(target=ask_until_unready, args=(server.port, lost)) for _ in range(8)]
            for client in clients:
                client.start()
            time.sleep(0.2 + 0.013 * number)
            server.process.send_signal(signal.SIGTERM)
            for client in clients:
                client.join()
            assert lost == []
            assert server.process.wait(timeout=30) == 0


def test_twenty_reloads_under_load(serve, model_builder, tmp_path):
    names = ["red", "green", "blue", "white", "black"]
    models = [
        model_builder(tmp_path / f"model{i}", metadata={"names": [f"{name}{i}" for name in names]}) for i in range(2)
    ]
    path = tmp_path / "served.onnx"
    shutil.copy(models[0], path)
    with serve(JAXCNN_MODEL=str(path), JAXCNN_RELOAD_SECONDS="1") as server:
        is_over, failed = threading.Event(), []

        def ask() -> None:
            with httpx.Client(base_url=server.client.base_url, timeout=30, trust_env=False) as client:
                while not is_over.is_set():
                    response = post(client, PICTURE)
                    if response.status_code != 200 or response.json()["predicted_class"] not in ("red0", "red1"):
                        failed.append(response.text)

        clients = [threading.Thread(target=ask) for _ in range(8)]
        for client in clients:
            client.start()
        for number in range(1, 21):
            shutil.copy(models[number % 2], tmp_path / "new")
            os.replace(tmp_path / "new", path)
            while post(server.client, PICTURE).json()["predicted_class"] != f"red{number % 2}":
                time.sleep(0.05)
        is_over.set()
        for client in clients:
            client.join()
        assert failed == []
        assert not [line for line in log_lines(server) if line["level"] == "error"]
