"""The log: one JSON object per line on standard output."""

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
    """Writes lines in a separate thread, so that logging never waits for a slow disk or an unread pipe.

    Lines that cannot be written, as on a full disk, are lost; so are the oldest of more than 10,000 waiting lines.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ends_line = True
        self._lines: deque[bytes] = deque(maxlen=10_000)
        self._is_closed = threading.Event()
        self._has_lines = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, fields: dict[str, Any]) -> None:
        """Appends a line with the time and these fields."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        try:
            text = orjson.dumps(line, default=str)
        except TypeError:
            # Text that is not valid Unicode, such as a file name.
            text = json.dumps(line, default=str).encode()
        self._lines.append(text + b"\n")
        if not self._has_lines.is_set():
            self._has_lines.set()

    def close(self) -> None:
        """Writes the remaining lines; gives up after a second if nobody reads them."""
        self._is_closed.set()
        self._has_lines.set()
        self._thread.join(timeout=1)

    def _run(self) -> None:
        while not self._is_closed.is_set():
            self._has_lines.wait()
            # Collect lines for a moment, to write many at once.
            self._is_closed.wait(0.05)
            self._has_lines.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        text = b"".join(self._lines.popleft() for _ in range(len(self._lines)))
        # No line goes on where another was cut off by a full disk.
        if text and not self._ends_line:
            text = b"\n" + text
        with contextlib.suppress(OSError):
            while text:
                written = os.write(self._descriptor, text)
                self._ends_line = text[:written].endswith(b"\n")
                text = text[written:]


class _Handler(logging.Handler):
    """Passes the records of Python's loggers to a `LogWriter`."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, with its request id and traceback if it has them."""
        fields = {"level": record.levelname.lower(), "message": record.getMessage()}
        if request_id := getattr(record, "request_id", None):
            fields["request_id"] = request_id
        if record.exc_info:
            fields["traceback"] = self._formatter.formatException(record.exc_info)
        self._writer.write(fields)


def open_closed_streams() -> None:
    """Opens the null device as standard input, output and error where the parent process closed them.

    The event loop would take such a descriptor for itself, and libuv aborts the process when it closes one of them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def start() -> LogWriter:
    """Makes the loggers of the server, of uvicorn and of the event loop write JSON, until the process ends.

    uvicorn's access log is turned off, as `server.middleware.request_log` writes one with more fields.
    """
    writer = LogWriter(_find_descriptor())
    for name in ("server", "uvicorn", "asyncio", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Handler(writer)], False
        logger.setLevel(logging.INFO)
    access_log = logging.getLogger("uvicorn.access")
    access_log.handlers, access_log.propagate = [], False
    atexit.register(writer.close)
    return writer


def _find_descriptor() -> int:
    """Returns the file descriptor of standard output, of standard error if that is closed, or of the null device."""
    for stream in (sys.stdout, sys.stderr):
        # Python sets a stream to None if it was closed before the start.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return stream.fileno()
    return os.open(os.devnull, os.O_WRONLY)


def access(
    writer: LogWriter, *, request_id: str, client: str, method: str, path: str, status: int, start: float
) -> None:
    """Writes the line of a finished request; `start` is a time of the monotonic clock."""
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
