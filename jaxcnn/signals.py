"""Stopping a run when the user or the system asks for it."""

import os
import signal
import socket
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nstopping after this step; again to stop at once\n"
GRACE_SECONDS = 2.0
"""What the main thread has to end by itself after the second signal; compiled code keeps it for minutes."""


class StopRequest:
    """Whether the user or the system asked the run to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request to save and stop, and says so; a second one acts at once.

    A signal that is ignored stays so: shells have what they start in the background not heed Ctrl-C.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    previous = {each: handler for each, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    def request(number: int, _: types.FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        restore()

    with _answered():
        for each in previous:
            signal.signal(each, request)
        try:
            yield stop
        finally:
            restore()


@contextmanager
def _answered() -> Iterator[None]:
    """Answers signals from another thread: Python's handlers wait until the main thread leaves compiled code."""
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
            writer.shutdown(socket.SHUT_WR)
            thread.join()


def _answer(reader: socket.socket, ended: threading.Event) -> None:
    """Says what the first signal does; after the second, ends the process if the main thread does not."""
    if _next_signal(reader):
        with suppress(OSError):  # nobody may be reading any more
            os.write(2, NOTICE)
    second = _next_signal(reader)
    if second and not ended.wait(GRACE_SECONDS):
        os._exit(128 + second)


def _next_signal(reader: socket.socket) -> int:
    """The number of the next signal that asks to stop; 0 when there will be none."""
    while number := int.from_bytes(reader.recv(1)):
        if number in SIGNALS:
            break
    return number
