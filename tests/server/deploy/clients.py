"""Clients that ask a server while it restarts."""

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx

from tests.server.wire import COLOURS, encode, post


@contextlib.contextmanager
def asking(port: int, expected: str) -> Iterator[list[float]]:
    """Has four clients send pictures during the block, on connections that they keep, and asserts that none is lost.

    Args:
      port: the port of the server.
      expected: the class that every answer must name.

    Yields:
      A list that gets the time of each answer.
    """
    is_over, lost, answered = threading.Event(), list[Exception](), list[float]()

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            while not is_over.is_set():
                try:
                    response = post(client, encode(COLOURS["red"])).raise_for_status()
                    assert response.json()["predicted_class"] == expected
                    answered.append(time.monotonic())
                except Exception as failure:
                    lost.append(failure)
                time.sleep(0.02)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        yield answered
    finally:
        is_over.set()
        for client in clients:
            client.join()
    assert lost == [], lost[:3]
