"""A cheap load generator: one thread, plain sockets, requests built beforehand.

`python -m tests.bench.load PORT CONCURRENCY SECONDS KIND` sends raw JPEGs, base64 JSON, or the same in the Open
Inference Protocol, and prints rates, latencies and statuses as JSON.
"""

import argparse
import base64
import io
import json
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64


def jpegs(count: int = 100) -> list[bytes]:
    """Returns crops of scikit-learn's sample photographs, as JPEG files of 64 x 64 pixels."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    photos = load_sample_images().images
    files = []
    for i in range(count):
        photo = photos[i % 2]
        y, x = (int(random.integers(0, side - 128)) for side in photo.shape[:2])
        piece = Image.fromarray(photo[y : y + 128, x : x + 128]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        piece.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def request(content_type: str, body: bytes, path: str) -> bytes:
    """Returns a whole HTTP request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def message(kind: str, file: bytes) -> tuple[str, bytes, str]:
    """Returns content type, body and path of a request of one kind with a picture: `raw`, `json` or `infer`."""
    if kind == "raw":
        return "image/jpeg", file, "/predict"
    image = base64.b64encode(file).decode()
    if kind == "json":
        return "application/json", json.dumps({"image": image}).encode(), "/predict"
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}
    return "application/json", json.dumps({"inputs": [tensor]}).encode(), "/v2/models/model/infer"


@dataclass
class Result:
    """The responses of a run."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Seconds until each response with status 200."""
    refusals: list[float] = field(default_factory=list)
    """Seconds until each other response."""
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Returns rates, and latencies in milliseconds."""
        return {
            "per_second": round(len(self.latencies) / self.seconds, 1),
            "p50_ms": _percentile(self.latencies, 50),
            "p99_ms": _percentile(self.latencies, 99),
            "max_ms": _percentile(self.latencies, 100),
            "refused_p99_ms": _percentile(self.refusals, 99),
            "statuses": {str(key): value for key, value in sorted(self.statuses.items())},
        }


def _percentile(seconds: list[float], percent: float) -> float | None:
    return round(float(np.percentile(seconds, percent)) * 1000, 2) if seconds else None


class _Connection:
    """A keep-alive connection with at most one request in flight."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(self.socket, selectors.EVENT_READ, self)
        self.answer = b""
        self.start = 0.0

    def send(self, data: bytes, start: float) -> None:
        self.start = start
        self.answer = b""
        self.socket.sendall(data)

    def receive(self) -> int | None:
        """Reads, and returns the status once the response is complete."""
        data = self.socket.recv(262_144)
        if not data:
            raise ConnectionError("closed by the server")
        self.answer += data
        head, separator, body = self.answer.partition(b"\r\n\r\n")
        if not separator:
            return None
        start = head.lower().find(b"\r\ncontent-length:")
        length = int(head[start + 17 :].split(b"\r\n", 1)[0])
        return int(head[9:12]) if len(body) >= length else None

    @property
    def is_last(self) -> bool:
        """Whether the server closes the connection after this response."""
        return b"connection: close" in self.answer.partition(b"\r\n\r\n")[0].lower()


def closed_loop(port: int, data: Sequence[bytes], concurrency: int, *, seconds: float, count: int = 0) -> Result:
    """Keeps `concurrency` requests in flight, for `seconds`, or until `count` have been sent if that is given."""
    result = Result()
    with selectors.DefaultSelector() as selector:
        # One request on each connection.
        start = time.perf_counter()
        sent = 0
        for _ in range(concurrency):
            _Connection(port, selector).send(data[sent % len(data)], time.perf_counter())
            sent += 1
        # A new request for each response, until the time is over and the last response is there.
        while selector.get_map():
            for key, _ in selector.select():
                connection: _Connection = key.data
                status = connection.receive()
                if status is None:
                    continue
                now = time.perf_counter()
                _record(result, status, now - connection.start)
                is_over = sent >= count if count else now - start >= seconds
                if is_over or connection.is_last:
                    selector.unregister(connection.socket)
                    connection.socket.close()
                if is_over:
                    continue
                if connection.is_last:
                    connection = _Connection(port, selector)
                connection.send(data[sent % len(data)], now)
                sent += 1
        result.seconds = time.perf_counter() - start
    return result


def open_loop(port: int, data: Sequence[bytes], rate: float, *, seconds: float, connections: int = 256) -> Result:
    """Sends `rate` requests per second, whatever comes back; latencies count from when a request was due."""
    result = Result()
    with selectors.DefaultSelector() as selector:
        # Connections take turns, so that the server closes none for being idle.
        idle = deque(_Connection(port, selector) for _ in range(connections))
        start = time.perf_counter()
        sent = 0
        while len(idle) < connections or sent < rate * seconds:
            # Send what is due, as far as there are connections.
            now = time.perf_counter()
            while sent < min(rate * (now - start), rate * seconds) and idle:
                idle.popleft().send(data[sent % len(data)], start + sent / rate)
                sent += 1
            # Receive.
            for key, _ in selector.select(0.001):
                connection: _Connection = key.data
                status = connection.receive()
                if status is not None:
                    _record(result, status, time.perf_counter() - connection.start)
                    idle.append(connection)
        result.seconds = time.perf_counter() - start
        for connection in idle:
            connection.socket.close()
    return result


def _record(result: Result, status: int, seconds: float) -> None:
    result.statuses[status] += 1
    (result.latencies if status == 200 else result.refusals).append(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("concurrency", type=int, help="requests in flight, for a closed loop")
    parser.add_argument("seconds", type=float)
    parser.add_argument("kind", choices=["raw", "json", "infer"])
    parser.add_argument("--rate", type=float, help="requests per second, for an open loop")
    parser.add_argument("--count", type=int, default=0, help="requests in total, instead of a time")
    options = parser.parse_args()
    data = [request(*message(options.kind, file)) for file in jpegs()]
    if options.rate:
        result = open_loop(options.port, data, options.rate, seconds=options.seconds)
    else:
        result = closed_loop(options.port, data, options.concurrency, seconds=options.seconds, count=options.count)
    print(json.dumps(result.summary()))


if __name__ == "__main__":
    main()
