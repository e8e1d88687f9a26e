"""Requests that the tests send to a server, and how they read its responses."""

import base64
import json
import os
import re
import socket
import time
from io import BytesIO

import httpx
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (240, 240, 240), "black": (0, 0, 0)}
YELLOW = (255, 255, 0)  # For this the model computes NaN.


def inherited() -> dict[str, str]:
    """Returns the variables of this process without settings of the server, which refuses unknown ones."""
    return {name: value for name, value in os.environ.items() if not name.startswith("JAXCNN_")}


def encode(colour: tuple[int, ...], kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def post(client: httpx.Client, data: bytes, content_type: str = "image/png", **options: object) -> httpx.Response:
    return client.post("/predict", content=data, headers={"Content-Type": content_type}, **options)


def error(response: httpx.Response) -> str:
    """Returns the message of an error response, after checking the form that all errors have."""
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert list(content) == ["error"]
    assert re.fullmatch(r"[^\n]{20,}", content["error"])
    return content["error"]


def log_lines(server, **fields: object) -> list[dict[str, object]]:
    """Returns the lines of the log with these fields; waits until there is one."""
    while True:
        lines = [json.loads(line) for line in server.log.read_text().split("\n")[:-1] if line.startswith("{")]
        if found := [line for line in lines if fields.items() <= line.items()]:
            return found
        time.sleep(0.02)


def head(*headers: str, path: str = "/predict") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: test", "Content-Type: image/png", *headers, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    response = b""
    while not (match := re.search(rb"\r\n\r\n(\{.*\})$", response, re.DOTALL)):
        received = connection.recv(65536)
        assert received, response
        response += received
    return int(response.split()[1]), json.loads(match[1])


def ask_until_unready(port: int, lost: list[Exception]) -> None:
    """Acts as a load balancer: sends requests on keep-alive connections until /readyz responds 503."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
        try:
            while client.get("/readyz").status_code == 200:
                for colour in ("red", "green"):
                    assert post(client, encode(COLOURS[colour])).json()["predicted_class"] == colour
        except Exception as failure:
            lost.append(failure)


def samples(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Returns all samples of /metrics by name and label values."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text)
    return {(item.name, *item.labels.values()): item.value for family in families for item in family.samples}


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
