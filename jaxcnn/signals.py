"""Stopping a run on SIGINT, SIGTERM or SIGHUP, after the step in progress."""

import math
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that stop a run. SIGHUP, when a terminal is closed, does not exist on Windows."""
NOTICE = b"\nstopping after this step; again to stop at once\n"
REPEAT_SECONDS = 1.0
"""Signals within this time of the first count as the first. A terminal that is closed sends SIGHUP twice, by the shell
and by the system, and `timeout` sends SIGTERM to its child and to the group of both."""
GRACE_SECONDS = 2.0
"""Time for the main thread to end after the second signal. In compiled code it may not end for minutes."""


class StopRequest:
    """The signal that asked the run to stop, and when; None before."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.time = -math.inf


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first of `SIGNALS` in the context into a request to stop; a later one acts as usual, at once.

    Each is answered even while the main thread is in compiled code, where Python runs no signal handlers. A signal
    that the process ignores stays ignored: shells let background jobs ignore Ctrl-C, and nohup ignores SIGHUP.

    Outside the main thread, which alone may handle signals, nothing is ever requested.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    previous = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, _: types.FrameType | None) -> None:
        if stop.signal is None:
            stop.signal, stop.time = signal.Signals(number), time.monotonic()
        elif time.monotonic() - stop.time >= REPEAT_SECONDS:
            restore()
            signal.raise_signal(number)

    with _watch_signals():
        # Only now: every request is announced by the thread.
        for number in previous:
            signal.signal(number, request)
        try:
            yield stop
        finally:
            restore()


@contextmanager
def _watch_signals() -> Iterator[None]:
    """Runs a thread that learns of signals through a socket, before Python's handlers run in the main thread."""
    reader, writer = socket.socketpair()
    ended = threading.Event()
    thread = threading.Thread(target=_answer, args=(reader, ended), name="signals", daemon=True)
    with reader, writer:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            signal.set_wakeup_fd(before)
            # The reader sees the end of the stream, so the thread ends.
            writer.shutdown(socket.SHUT_WR)
            thread.join()


def _answer(reader: socket.socket, ended: threading.Event) -> None:
    """Announces the effect of the first signal. After the second, ends the process if the main thread does not."""
    if _next_signal(reader):
        with suppress(OSError):  # Standard error may be closed.
            os.write(2, NOTICE)
    first = time.monotonic()
    while (second := _next_signal(reader)) and time.monotonic() - first < REPEAT_SECONDS:
        pass
    if second and not ended.wait(GRACE_SECONDS):
        os._exit(128 + second)


def _next_signal(reader: socket.socket) -> int:
    """Waits for the next of `SIGNALS`, and returns its number; 0 at the end of the stream."""
    while number := int.from_bytes(reader.recv(1)):
        if number in SIGNALS:
            break
    return number
