"""Work in threads: in order, only a little ahead, and ended by an error."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxcnn.data import threads
from jaxcnn.data.threads import AHEAD, map_ahead


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "decoding_threads", lambda: 2)


def test_results_are_in_the_order_of_the_items():
    first = threading.Event()

    def work(item):
        if item == 0:
            assert first.wait(10)
        if item == 1:
            first.set()
        return 2 * item

    assert list(map_ahead(work, range(50))) == [2 * item for item in range(50)]


def test_items_are_read_only_a_little_ahead():
    read = []

    def items():
        for item in range(100):
            read.append(item)
            yield item

    for done, _ in enumerate(map_ahead(lambda item: item, items()), 1):
        assert len(read) <= done + 2 * AHEAD


def test_an_error_ends_it_and_the_items_that_wait_are_dropped(monkeypatch):
    worked, may_end = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            super().shutdown(wait=False, **options)
            may_end.set()
            super().shutdown(wait=wait)

    def work(item):
        worked.append(item)
        if item > 0:
            assert may_end.wait(10)
        return item

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Pool)
    results = map_ahead(work, range(100))
    assert next(results) == 0
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert len(worked) <= 3


def test_errors_of_the_work_are_raised_in_their_place():
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    results = map_ahead(work, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
