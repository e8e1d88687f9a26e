"""Stopping a run when the user or the system asks for it."""

import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether the user or the system asked the run to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request to save and stop; a second one acts at once."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    previous = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    def request(number: int, _: types.FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        restore()

    for each in previous:
        signal.signal(each, request)
    try:
        yield stop
    finally:
        restore()
