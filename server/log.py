"""The log: one JSON object a line on standard output."""

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import orjson


class LogWriter:
    """Writes lines on a thread of its own.

    Whoever logs does not wait: not for a slow disk, nor for a pipe that nobody reads. What cannot be written (the disk
    is full) is lost, and of what waits for too long the oldest.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque(maxlen=10_000)
        self._is_closed = threading.Event()
        self._waits = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, fields: dict[str, Any]) -> None:
        """Appends a line of these fields, after the time."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        try:
            text = orjson.dumps(line, default=str)
        except TypeError:  # Text that is not valid Unicode, such as the name of a file.
            text = json.dumps(line, default=str).encode()
        self._lines.append(text + b"\n")
        if not self._waits.is_set():
            self._waits.set()

    def close(self) -> None:
        """Writes what is left; gives up on a reader who does not read."""
        self._is_closed.set()
        self._waits.set()
        self._thread.join(timeout=1)

    def _run(self) -> None:
        while not self._is_closed.is_set():
            self._waits.wait()
            self._is_closed.wait(0.05)  # Many lines for one write.
            self._waits.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        text = b"".join(self._lines.popleft() for _ in range(len(self._lines)))
        with contextlib.suppress(OSError):
            while text:
                text = text[os.write(self._descriptor, text) :]


class _Handler(logging.Handler):
    """Hands what Python's loggers get to the writer."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record with its traceback, if it has one."""
        fields = {"level": record.levelname.lower(), "message": record.getMessage()}
        if request_id := getattr(record, "request_id", None):
            fields["request_id"] = request_id
        if record.exc_info:
            fields["traceback"] = self._formatter.formatException(record.exc_info)
        self._writer.write(fields)


def start() -> LogWriter:
    """Has the server's and uvicorn's loggers write JSON from now on, to the last line of the process.

    uvicorn's access log is left out: `server.middleware.request_log` writes a better one.
    """
    writer = LogWriter(sys.stdout.fileno())
    for name in ("server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Handler(writer)], False
        logger.setLevel(logging.INFO)
    access_log = logging.getLogger("uvicorn.access")
    access_log.handlers, access_log.propagate = [], False
    atexit.register(writer.close)
    return writer


def access(
    writer: LogWriter, *, request_id: str, client: str, method: str, path: str, status: int, start: float
) -> None:
    """Writes the line of an answered request; `start` is by the monotonic clock."""
    writer.write(
        {
            "level": "info",
            "message": "request",
            "request_id": request_id,
            "client": client,
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": round((time.monotonic() - start) * 1000, 3),
        }
    )
