"""An event loop in which waiting takes no time."""

import asyncio
import selectors
from collections.abc import Coroutine


class _Selector(selectors.DefaultSelector):
    """Passes the time that it is asked to wait, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "this would wait for ever"
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves on whenever nothing else can happen."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_virtually[T](main: Coroutine[object, object, T]) -> T:
    """Runs a coroutine, whose waiting takes no time."""
    return asyncio.run(main, loop_factory=VirtualLoop)
