"""How clients share a bounded resource, and who has to give way."""

from types import SimpleNamespace

import pytest

from server import shares
from server.fair_queue import FairQueue
from server.shares import Claim, Shares, client_of


@pytest.fixture
def clock(monkeypatch):
    """The time, which the tests set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(shares.time, "monotonic", lambda: clock.now)
    return clock


def claim(client: str, evicted: list[Claim], *, is_moving: bool = True) -> Claim:
    made = Claim(client)
    made.is_moving = is_moving
    made.evict = lambda: evicted.append(made)
    return made


def test_one_client_may_have_everything():
    pool, evicted = Shares(10), []
    assert all(pool.take(claim("a", evicted), 1) for _ in range(10))
    assert not pool.take(claim("a", evicted), 1)
    assert evicted == []


def test_the_slowest_of_the_client_that_has_most_gives_way(clock):
    pool, evicted = Shares(100), []
    slow, fast, other = claim("greedy", evicted), claim("greedy", evicted), claim("b", evicted)
    for taker, amount in ((slow, 40), (fast, 40), (other, 20)):
        assert pool.take(taker, amount)
    clock.now = 60
    fast.move(1_000_000)
    slow.move(10)
    assert pool.take(claim("new", evicted), 10)
    assert evicted == [slow]
    assert slow.is_evicted
    assert (slow.amount, fast.amount, other.amount) == (0, 40, 20)


def test_who_would_have_as_much_as_the_others_gets_no_more(clock):
    pool, evicted = Shares(100), []
    for client in ("a", "b"):
        assert pool.take(claim(client, evicted), 50)
    late = claim("c", evicted)
    assert pool.would_take("c", 10)
    assert pool.take(late, 10)
    assert not pool.would_take("c", 60)
    assert pool.take(late, 30)
    assert not pool.take(late, 30)
    assert [victim.client for victim in evicted] in (["a"], ["b"])


def test_what_has_stalled_gives_way_to_its_own_client(clock):
    pool, evicted = Shares(10), []
    stalled, complete = claim("a", evicted), claim("a", evicted, is_moving=False)
    assert pool.take(stalled, 5)
    assert pool.take(complete, 5)
    assert not pool.take(claim("a", evicted), 1)
    clock.now = 10
    assert pool.take(claim("a", evicted), 1)
    assert evicted == [stalled]
    assert not pool.take(claim("a", evicted), 5)


def test_the_youngest_of_those_complete_gives_way(clock):
    pool, evicted = Shares(2), []
    old = claim("a", evicted, is_moving=False)
    clock.now = 5
    young = claim("a", evicted, is_moving=False)
    assert pool.take(old, 1)
    assert pool.take(young, 1)
    assert pool.take(claim("b", evicted, is_moving=False), 1)
    assert evicted == [young]


def test_the_youngest_gives_way_even_if_it_came_slowly(clock):
    pool, evicted = Shares(100_000), []
    fast, slow = claim("a", evicted), claim("a", evicted)
    assert pool.take(fast, 50_000)
    assert pool.take(slow, 50_000)
    fast.move(10_000_000)
    clock.now = 1
    slow.move(10)
    fast.is_moving = slow.is_moving = False
    assert pool.take(claim("b", evicted), 1000)
    assert evicted == [slow]


def test_nobody_gives_way_to_a_claim_that_is_refused_anyway():
    pool, evicted = Shares(100), []
    several = [claim(client, evicted) for client in "aab"]
    for taker, amount in zip(several, (30, 30, 40), strict=True):
        assert pool.take(taker, amount)
    # Without one of its two claims, the first client would have less than this.
    assert not pool.would_take("c", 50)
    assert not pool.take(claim("c", evicted), 50)
    assert not pool.take(claim("c", evicted), 35, spare=50)
    assert (evicted, [taker.amount for taker in several]) == ([], [30, 30, 40])


def test_as_many_give_way_as_need_be(clock):
    pool, evicted = Shares(100), []
    several = [claim("a", evicted) for _ in range(5)]
    for taker in several:
        assert pool.take(taker, 20)
    clock.now = 5
    for taker in several[2:]:
        taker.move(100_000)
    assert pool.would_take("b", 40)
    assert pool.take(claim("b", evicted), 40)
    assert evicted == several[:2]


def test_spare_room_is_for_others():
    pool, evicted = Shares(10), []
    assert not pool.take(claim("a", evicted), 9, spare=2)
    assert pool.take(claim("a", evicted), 8, spare=2)
    assert pool.take(claim("b", evicted), 2)


def test_released_claims_leave_nothing():
    pool, evicted = Shares(10), []
    held = claim("a", evicted)
    for _ in range(3):
        assert pool.take(held, 10)
        pool.release(held)
        pool.release(held)
    assert not pool._by_client
    assert not pool._claims


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("192.0.2.1", 80), "192.0.2.1"),
        (("2001:db8:1:2:3::4", 80), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.1", 80), "192.0.2.1"),
        (("testclient", 80), "testclient"),
        (None, ""),
    ],
)
def test_a_client_is_an_address_or_a_network(client, expected):
    assert client_of({"client": client}) == expected


# The queue


def item(client: str, number: int) -> SimpleNamespace:
    return SimpleNamespace(client=client, number=number)


def test_clients_take_turns():
    queue = FairQueue()
    for number, client in enumerate("aaabbc"):
        queue.append(item(client, number))
    assert (queue.count_before("a"), queue.count_before("d"), len(queue)) == (6, 3, 6)
    assert [queue.pop().number for _ in range(6)] == [0, 3, 5, 1, 4, 2]
    assert len(queue) == 0


def test_a_removed_item_is_not_served():
    queue = FairQueue()
    items = [item("a", 0), item("b", 1), item("a", 2)]
    for one in items:
        queue.append(one)
    queue.remove(items[0])
    assert queue.first() is items[2]
    assert list(queue) == [items[2], items[1]]
    queue.remove(items[2])
    with pytest.raises(ValueError, match="not in"):
        queue.remove(items[2])
    assert [queue.pop() for _ in range(len(queue))] == [items[1]]
