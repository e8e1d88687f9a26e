"""A bounded resource that clients share: whoever has least may take from whoever has most, the slowest claim first."""

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

# Seconds over which a claim's rate is averaged.
_MEMORY_SECONDS = 1.0

# A claim whose rate is below this, in bytes per second, gives way to a new one of the same client.
_SLOW_RATE = 16_384


def client_of(scope: Mapping[str, Any]) -> str:
    """Returns who sent a request: an IPv4 address, or the network of an IPv6 address, in which a host chooses freely.

    Behind a proxy, uvicorn's `--forwarded-allow-ips` decides whether this is the address of the client or the proxy.
    """
    client = scope.get("client")
    if not client:
        return ""
    host = str(client[0])
    # IPv4, or a name: parsing either would give the same text.
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    # A client of IPv4 at a socket that listens for both versions.
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Claim:
    """What one request holds of a resource.

    Attributes:
      client: who sent the request.
      amount: how much it holds.
      evict: ends the request, because others need what it holds; None while it cannot be ended.
      is_evicted: whether that has happened.
      is_moving: whether bytes are on their way, so that it may be slow.
      moved_at: when the last bytes came, or the request began; a time of the monotonic clock.
    """

    def __init__(self, client: str) -> None:
        self.client = client
        self.amount = 0
        self.evict: Callable[[], None] | None = None
        self.is_evicted = False
        self.is_moving = False
        # A new one is not slow yet.
        self._rate = float(_SLOW_RATE)
        self.moved_at = time.monotonic()

    def move(self, size: int) -> None:
        """Records that `size` bytes were sent or received."""
        self._rate = self.rate() + size / _MEMORY_SECONDS
        self.moved_at = time.monotonic()

    def rate(self) -> float:
        """Returns the bytes per second that were sent or received lately."""
        return self._rate * math.exp((self.moved_at - time.monotonic()) / _MEMORY_SECONDS)


class Shares:
    """A resource of which there is a limited amount.

    There is no fixed share: one client may hold everything, until others want some of it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._claims: dict[Claim, None] = {}
        self._by_client: Counter[str] = Counter()

    def take(self, claim: Claim, amount: int, *, spare: int = 0) -> bool:
        """Adds to a claim, if need be by evicting others.

        Args:
          claim: the claim.
          amount: how much to add.
          spare: how much has to stay free.

        Returns:
          Whether there was enough.
        """
        # Nobody gives way for nothing.
        if (victims := self._find_victims(claim, amount, self._limit - spare)) is None:
            return False
        for victim in victims:
            self.release(victim)
            victim.is_evicted = True
            assert victim.evict is not None
            victim.evict()
        claim.amount += amount
        self._claims[claim] = None
        self._used += amount
        self._by_client[claim.client] += amount
        return True

    def release(self, claim: Claim) -> None:
        """Frees all that a claim holds."""
        self._used -= claim.amount
        self._by_client[claim.client] -= claim.amount
        if not self._by_client[claim.client]:
            del self._by_client[claim.client]
        self._claims.pop(claim, None)
        claim.amount = 0

    def would_take(self, client: str, amount: int) -> bool:
        """Whether a new claim of this client would get so much."""
        return self._find_victims(Claim(client), amount, self._limit) is not None

    def _find_victims(self, claim: Claim, amount: int, limit: int) -> list[Claim] | None:
        """Returns which claims have to give way for another to grow by an amount; None if even that is not enough."""
        excess = self._used + amount - limit
        victims: list[Claim] = []
        if excess <= 0:
            return victims
        left = [other for other in self._claims if other.evict is not None and other is not claim]
        by_client = self._by_client.copy()
        while excess > 0:
            victim = _find_victim(left, by_client, claim, amount)
            if victim is None:
                return None
            left.remove(victim)
            by_client[victim.client] -= victim.amount
            excess -= victim.amount
            victims.append(victim)
        return victims


def _find_victim(others: list[Claim], by_client: Counter[str], claim: Claim, amount: int) -> Claim | None:
    """Returns the slowest of the claims of the client that holds most, if it should give way."""
    if not others:
        return None
    # Among the complete ones, the youngest has waited least.
    victim = min(
        others,
        key=lambda other: (
            -by_client[other.client],
            not other.is_moving,
            other.rate() if other.is_moving else -other.moved_at,
        ),
    )
    if by_client[victim.client] > by_client[claim.client] + amount:
        return victim
    # Clients behind one address share its part: there, what has stalled gives way.
    is_slow = victim.is_moving and victim.rate() < min(_SLOW_RATE, claim.rate()) / 2
    return victim if is_slow and victim.client == claim.client else None
