"""Memory for decoding large pictures, which the workers of all models share."""

import threading
from typing import Protocol


class Line(Protocol):
    """The large pictures that wait for one model."""

    def may_start(self) -> bool:
        """Whether the next one waits for nothing but memory."""

    def waits_since(self) -> float:
        """Returns when the request of the next one was queued, if it may start."""

    def bytes_needed(self) -> int:
        """Returns what decoding the next one takes, if it may start."""


class DecodeMemory:
    """A number of bytes, which goes to whichever line has waited longest.

    Attributes:
      lock: held by whoever calls the methods or changes a line.
    """

    def __init__(self, limit: int) -> None:
        self.lock = threading.Lock()
        self._free = limit
        self._lines: list[Line] = []
        self._changed: list[threading.Condition] = []

    def join(self, line: Line) -> threading.Condition:
        """Adds a line, and returns the condition on `lock` that is notified when its turn may have come."""
        self._lines.append(line)
        self._changed.append(threading.Condition(self.lock))
        return self._changed[-1]

    def may_take(self, line: Line) -> bool:
        """Whether this line may start its next picture. Others, which fit now but came later, wait for it."""
        if not line.may_start() or line.bytes_needed() > self._free:
            return False
        rivals = (rival for rival in self._lines if rival.may_start())
        return line is min(rivals, key=lambda rival: rival.waits_since())

    def take(self, amount: int) -> None:
        """Takes memory; another line may be the next now."""
        self._free -= amount
        self.notify()

    def give_back(self, amount: int) -> None:
        """Frees memory."""
        self._free += amount
        self.notify()

    def notify(self) -> None:
        """Lets each line look whether it is the next. Call it after the first picture of one has gone."""
        for changed in self._changed:
            changed.notify()
