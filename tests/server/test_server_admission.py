"""Who gets memory, a place in the queue and downloads, who is refused and why, and who has to give way."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from server import shares
from server.admission import Admission, Place, Places
from server.metrics import Metrics, ModelMetrics
from server.settings import Settings

# Up to 100 bytes are small; larger bodies leave 400 bytes free, or 800 if none is larger than 1000.
BUFFER, MAX_BODY, SPARE = 6407, 6007, 400


@pytest.fixture
def clock(monkeypatch):
    """The time, which the tests set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(shares.time, "monotonic", lambda: clock.now)
    return clock


class Server:
    """The admission of a server with one model."""

    def __init__(self, **changes: int) -> None:
        settings = Settings(**{"max_buffer_bytes": BUFFER, "max_body_bytes": MAX_BODY, "max_requests": 2, **changes})
        self.metrics = Metrics()
        self.admission = Admission(settings, self.metrics)
        self.places = Places(self.admission, settings, ModelMetrics(self.metrics, "pets"))
        self._stack = contextlib.ExitStack()

    def ask(self, client: str = "a", expected_wait: float = 0) -> Place:
        """Gives a request a place until `leave`."""
        return self._stack.enter_context(self.places.place(client, lambda _: expected_wait))

    def download(self, client: str = "a") -> shares.Claim:
        """Starts a download that goes on until `leave`."""
        return self._stack.enter_context(self.admission.download(client))

    def leave(self) -> None:
        """Ends all requests."""
        self._stack.close()

    def refusals(self) -> dict[str, int]:
        """Returns how many requests were refused, by reason."""
        found = {}
        for line in self.metrics.render().decode().splitlines():
            if line.startswith("jaxcnn_shed_total") and not line.endswith(" 0.0"):
                labels, count = line.split()
                found[labels.partition('reason="')[2].partition('"')[0]] = int(float(count))
        return found


@contextlib.contextmanager
def refused(wait: int):
    """Expects a 503 that asks the client to wait for so many seconds."""
    with pytest.raises(HTTPException) as caught:
        yield
    assert (caught.value.status_code, caught.value.headers["Retry-After"]) == (503, str(wait))


def evictable(place: Place) -> list[Place]:
    """Allows the eviction of a request; returns a list that has it as soon as it is evicted."""
    evicted: list[Place] = []
    place.allow_eviction(lambda: evicted.append(place))
    return evicted


def test_a_server_is_ready_at_first():
    assert Server().admission.is_ready


# Places


def test_a_full_queue_refuses_at_once_and_has_room_later():
    server = Server()
    first, second, third = server.ask(), server.ask(), server.ask(expected_wait=5)
    assert first.client == "a"
    for place in (first, second):
        place.enter()
    assert server.refusals() == {}
    with refused(7):
        server.ask(expected_wait=7)
    with refused(5):
        third.enter()
    assert server.refusals() == {"requests": 2}
    server.leave()
    for place in (server.ask(), server.ask()):
        place.enter()


def test_a_place_is_free_again_after_an_error():
    server = Server(max_requests=1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), server.places.place("a", lambda _: 0) as place:
            use_and_fail(place)


def use_and_fail(place: Place) -> None:
    place.enter()
    place.hold(MAX_BODY)
    raise ZeroDivisionError


def test_the_last_place_is_taken_before_anyone_gives_way():
    server = Server()
    first = server.ask("greedy")
    first.enter()
    evicted = evictable(first)
    server.ask("other").enter()
    assert (evicted, first.is_evicted) == ([], False)


def test_a_queued_request_gives_way_to_another_client():
    server = Server()
    greedy = [server.ask("greedy") for _ in range(2)]
    for place in greedy:
        place.enter()
    with refused(3):
        server.ask("other", 3)
    evicted = [evictable(place) for place in greedy]
    with refused(2):
        server.ask("greedy", 2)
    other = server.ask("other")
    other.enter()
    (victim,) = [place for place in greedy if place.is_evicted]
    assert sorted(map(len, evicted)) == [0, 1]
    assert [victim] in evicted
    assert not other.is_evicted
    error = victim.evicted()
    assert (error.status_code, error.headers) == (503, {"Retry-After": "1", "Connection": "close"})
    assert error.detail == "The server is busy: try again in 1 second."
    assert server.refusals() == {"requests": 2, "evicted": 1}


def test_a_request_that_can_no_longer_be_ended_keeps_its_place():
    server = Server()
    for _ in range(2):
        place = server.ask("greedy")
        place.enter()
        evictable(place)
        place.allow_eviction(None)
    with refused(1):
        server.ask("other")


# Memory


def test_large_bodies_leave_room_for_small_ones():
    server = Server()
    large = server.ask()
    large.hold(3000)
    large.hold(MAX_BODY)
    with refused(1):
        server.ask().hold(101)
    assert server.refusals() == {"bytes": 1}
    for _ in range(SPARE // 100):
        server.ask().hold(100)
    with refused(1):
        server.ask().hold(1)
    large.hold(MAX_BODY)  # An empty piece takes nothing.
    server.leave()
    server.ask().hold(MAX_BODY)


def test_no_more_than_an_eighth_is_left_free():
    server = Server(max_body_bytes=1000)
    places = [server.ask() for _ in range(6)]
    for place in places[:5]:
        place.hold(1000)
    places[5].hold(BUFFER - BUFFER // 8 - 5000)
    with refused(1):
        places[5].hold(BUFFER - BUFFER // 8 - 5000 + 1)


def test_a_client_without_memory_gets_some_of_the_one_that_has_all():
    server = Server()
    greedy = [server.ask("greedy") for _ in range(2)]
    for place in greedy:
        place.hold(3000)
        evictable(place)
    server.ask("other").hold(3000)
    assert sorted(place.is_evicted for place in greedy) == [False, True]
    with refused(1):
        server.ask("greedy").hold(3000)


def test_the_slowest_body_of_the_client_that_has_most_gives_way(clock):
    server = Server()
    slow, fast = server.ask("greedy"), server.ask("greedy")
    slow.hold(2000)
    fast.hold(1000)
    evicted = evictable(slow), evictable(fast)
    clock.now = 60
    fast.hold(3000)
    slow.hold(2001)  # It has more, but gets it more slowly.
    other = server.ask("other")
    other.hold(2500)
    assert evicted == ([slow], [])
    assert (slow.is_evicted, fast.is_evicted, other.is_evicted) == (True, False, False)
    assert slow.evicted().status_code == 503


def test_a_body_that_has_stalled_gives_way_to_another_of_its_client(clock):
    server = Server()
    stalled, complete = server.ask(), server.ask()
    for place in (stalled, complete):
        place.hold(3000)
        evictable(place)
    complete.enter()
    clock.now = 60
    server.ask().hold(100)
    server.ask().hold(2900)
    assert (stalled.is_evicted, complete.is_evicted) == (True, False)
    with refused(1):
        server.ask().hold(2900)
    assert not complete.is_evicted


# Downloads


def test_sixteen_downloads_go_on_at_once():
    server = Server()
    claims = [server.download() for _ in range(16)]
    assert [claim.client for claim in claims] == ["a"] * 16
    with refused(1):
        server.download()
    assert server.refusals() == {"downloads": 1}
    server.leave()
    for _ in range(16):
        server.download()


def test_a_download_that_has_stalled_gives_way(clock):
    server = Server()
    claims = [server.download() for _ in range(16)]
    ended: list[Callable[[], None]] = []
    claims[3].evict = lambda: ended.append(claims[3])
    clock.now = 60
    server.download()
    assert ended == [claims[3]]


def test_a_download_that_fails_takes_no_room():
    server = Server()
    for _ in range(17):
        with pytest.raises(ZeroDivisionError), server.admission.download("a"):
            raise ZeroDivisionError
