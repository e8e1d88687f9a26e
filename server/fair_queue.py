"""A queue that serves clients in turn: one with many requests waits for itself, not others for it."""

from collections import deque
from collections.abc import Iterator
from typing import Protocol


class Item(Protocol):
    """What can be queued."""

    @property
    def client(self) -> str:
        """Who sent it."""


class FairQueue[T: Item]:
    """First in, first out for each client, and one of each client in turn."""

    def __init__(self) -> None:
        self._by_client = dict[str, deque[T]]()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return (item for items in self._by_client.values() for item in items)

    def append(self, item: T) -> None:
        """Adds an item."""
        self._by_client.setdefault(item.client, deque()).append(item)
        self._length += 1

    def first(self) -> T:
        """Returns the item whose turn it is."""
        return next(iter(self._by_client.values()))[0]

    def pop(self) -> T:
        """Removes the item whose turn it is, and lets the other clients go before the next of this one."""
        client, items = next(iter(self._by_client.items()))
        item = items.popleft()
        self._length -= 1
        del self._by_client[client]
        if items:
            self._by_client[client] = items
        return item

    def remove(self, item: T) -> None:
        """Removes an item.

        Raises:
          ValueError: it is not in the queue.
        """
        items = self._by_client.get(item.client, deque())
        items.remove(item)
        self._length -= 1
        if not items:
            del self._by_client[item.client]

    def count_before(self, client: str) -> int:
        """Returns how many items would be served before a new one of this client."""
        own = len(self._by_client.get(client, ()))
        return sum(min(len(items), own + 1) for items in self._by_client.values())
