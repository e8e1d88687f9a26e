"""The queue and the worker threads, with a real model and queries that the tests hold up."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import model, settings
from server.errors import StartError
from server.metrics import Metrics
from server.protocols import Answer, Decoded
from server.workers import Job, Workers


@dataclass
class Ask:
    """A query of pictures of one colour, whose decoding waits for `go`."""

    colour: tuple[int, int, int] = (250, 0, 0)
    size: int = 100
    count: int = 1
    outputs: frozenset[str] = frozenset({"probabilities"})
    go: threading.Event | None = None
    seen: list[str] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    def decode(self, model: model.Model, is_wanted: Callable[[], bool]) -> Decoded:
        self.seen.append(threading.current_thread().name)
        self.begun.set()
        if self.go is not None:
            assert self.go.wait(20)
        images = np.full((self.count, 8, 8, 3), self.colour, np.uint8)
        return Decoded(images, self.outputs, lambda outputs: self.write(model, outputs))

    def write(self, model, outputs) -> Answer:
        assert outputs.keys() == self.outputs
        return Answer(" ".join(model.names[i] for i in outputs["probabilities"].argmax(axis=1)).encode())


@dataclass
class HeldUp:
    """A session whose runs wait for `go`, and which takes all pictures for red."""

    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def run(self, names, inputs):
        self.begun.set()
        assert self.go.wait(20)
        return [np.ones((len(inputs["image"]), 5), np.float32)]


def run(test: Callable, model_path, **changes: object) -> None:
    """Runs a coroutine function with a pool of workers."""

    async def main() -> None:
        chosen = settings.Settings(**{"threads": 1, "max_batch": 4, "deadline_ms": 20_000, **changes})
        workers = Workers(model.load(model_path, max_batch=4, threads=1), chosen, Metrics())
        try:
            await test(workers)
        finally:
            await asyncio.to_thread(workers.close)

    asyncio.run(main())


def test_threads_that_the_system_does_not_start_are_a_start_error(model_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    async def main():
        monkeypatch.setattr(threading.Thread, "start", refuse)
        try:
            Workers(loaded, settings.Settings(threads=64), Metrics())
        finally:
            monkeypatch.undo()

    loaded = model.load(model_path, max_batch=4, threads=1)
    with pytest.raises(StartError, match=r"^The system starts only 0 of the 64 threads of JAXCNN_THREADS: lower it"):
        asyncio.run(main())


def start(workers: Workers, query: Ask) -> tuple[asyncio.Task, asyncio.Future]:
    """Starts a query. Returns its task, and the future to set when the client disconnects."""
    gone = asyncio.get_running_loop().create_future()
    return asyncio.create_task(workers.answer(query, gone)), gone


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


async def hold_up(workers: Workers) -> tuple[threading.Event, asyncio.Task]:
    """Keeps a thread busy until the returned event is set."""
    first = Ask(go=threading.Event())
    task, _ = start(workers, first)
    await until(first.begun)
    return first.go, task


def test_queued_queries_share_a_batch_and_get_their_own_answers(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        colours = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "black": (0, 0, 0)}
        tasks = [start(workers, Ask(colour))[0] for colour in colours.values()]
        await asyncio.sleep(0)
        go.set()
        assert [answer.body.decode() for answer in await asyncio.gather(*tasks)] == [*colours]
        await first
        text = workers._metrics.render().decode()
        assert 'jaxcnn_batch_size_bucket{le="2.0"} 1.0' in text
        assert 'jaxcnn_batch_size_bucket{le="4.0"} 2.0' in text

    run(test, model_path)


def test_a_batch_of_many_pictures_is_run_in_chunks(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        more = frozenset({"probabilities", "logits"})
        tasks = [
            start(workers, query)[0] for query in (Ask((0, 0, 250), count=3), Ask((0, 250, 0), count=3, outputs=more))
        ]
        await asyncio.sleep(0)
        go.set()
        assert [answer.body for answer in await asyncio.gather(*tasks)] == [b"blue blue blue", b"green green green"]
        await first
        text = workers._metrics.render().decode()
        for line in ('bucket{le="1.0"} 1.0', 'bucket{le="2.0"} 2.0', 'bucket{le="4.0"} 3.0', "sum 7.0"):
            assert f"jaxcnn_batch_size_{line}" in text

    run(test, model_path)


def test_a_batch_is_a_share_of_the_queue(model_path):
    async def test(workers):
        def pick(*sizes):
            workers._queue.extend(Job(Ask(size=size)) for size in sizes)
            picked = [job.query.size for job in workers._pick()]
            workers._queue.clear()
            return picked

        large = 10**6
        assert pick(1, 2, 3, 4, 5) == [1, 2]
        assert pick(*range(20)) == [0, 1, 2, 3]
        assert pick(large, 1, 2, 3) == [large]
        assert pick(1, large, 2, 3) == [1]

    run(test, model_path, threads=3)


def test_a_failing_query_does_not_fail_its_batch(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        good, bad = Ask((0, 0, 250)), Ask((255, 255, 0))
        broken = Ask()
        broken.decode = lambda *_: 1 / 0
        tasks = [start(workers, query)[0] for query in (good, bad, broken, Ask((0, 250, 0)))]
        await asyncio.sleep(0)
        go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert (answers[0].body, answers[3].body) == (b"blue", b"green")
        assert isinstance(answers[1], FloatingPointError)
        assert isinstance(answers[2], ZeroDivisionError)
        await first

    run(test, model_path)


def test_no_error_ends_a_thread(model_path):
    def leave(*_):
        raise SystemExit(3)

    async def test(workers):
        broken = Ask()
        broken.decode = leave
        with pytest.raises(RuntimeError, match=r"SystemExit\(3\)"):
            await start(workers, broken)[0]
        assert (await start(workers, Ask())[0]).body == b"red"

    run(test, model_path)


def test_a_model_that_fails_on_a_batch_is_run_one_by_one(model_builder, tmp_path, model_path):
    async def test(workers):
        good = workers.model
        picky = model_builder(tmp_path / "picky.onnx", rows=1)
        session = model._open(picky, threads=1)
        workers.model = dataclasses.replace(good, session=session)
        go, first = await hold_up(workers)
        tasks = [start(workers, Ask(colour))[0] for colour in ((0, 0, 250), (0, 250, 0))]
        await asyncio.sleep(0)
        go.set()
        assert [answer.body for answer in await asyncio.gather(*tasks)] == [b"blue", b"green"]
        await first

    run(test, model_path)


def test_a_large_body_goes_alone(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        held = threading.Event()
        small, large, after = Ask(), Ask(size=10**6, go=held), Ask()
        tasks = [start(workers, query)[0] for query in (small, large, after)]
        await asyncio.sleep(0)
        go.set()
        await tasks[0]  # The large one does not hold it up.
        await until(large.begun)
        assert not after.begun.is_set()
        held.set()
        await asyncio.gather(first, *tasks)

    run(test, model_path)


def test_a_client_that_disconnects_leaves_the_queue(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        query = Ask()
        task, gone = start(workers, query)
        await asyncio.sleep(0)
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        assert len(workers._queue) == 0
        go.set()
        await first
        assert query.seen == []

    run(test, model_path)


def test_a_query_past_its_deadline_leaves_the_queue(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        query = Ask()
        with pytest.raises(HTTPException) as caught:
            await start(workers, query)[0]
        assert caught.value.status_code == 504
        assert len(workers._queue) == 0
        go.set()
        with pytest.raises(HTTPException):
            await first
        assert query.seen == []

    run(test, model_path, deadline_ms=200)


def test_a_client_that_disconnects_during_a_run_holds_up_no_one(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        session = HeldUp()
        workers.model = dataclasses.replace(workers.model, session=session)
        (task, gone), (other, _) = (start(workers, Ask()) for _ in range(2))
        await asyncio.sleep(0)
        go.set()
        await first
        await until(session.begun)
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        session.go.set()
        assert (await other).body == b"red"

    run(test, model_path)


def test_close_finishes_queued_queries(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        tasks = [start(workers, Ask((0, 0, 250)))[0] for _ in range(10)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(workers.close))
        go.set()
        assert {answer.body for answer in await asyncio.gather(*tasks)} == {b"blue"}
        await asyncio.gather(first, closing)

    run(test, model_path)


def test_an_abandoned_query_is_not_run(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        with pytest.raises(HTTPException, match="504"):
            await first
        go.set()
        answer = await start(workers, Ask((0, 0, 250)))[0]
        assert answer.body == b"blue"
        assert "jaxcnn_batch_size_count 1.0" in workers._metrics.render().decode()

    run(test, model_path, deadline_ms=500)


def test_an_abandoned_query_is_not_decoded(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        held, beside = Ask(go=threading.Event()), Ask()
        tasks = [start(workers, query) for query in (held, beside)]
        await asyncio.sleep(0)
        go.set()
        await first
        await until(held.begun)  # `beside` is in the same batch.
        for task, gone in tasks:
            gone.set_result(None)
            with pytest.raises(ClientDisconnect):
                await task
        held.go.set()
        await start(workers, Ask())[0]
        assert beside.seen == []

    run(test, model_path)


def test_close_does_not_wait_for_abandoned_queries(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        closing = asyncio.create_task(asyncio.to_thread(workers.close))
        try:
            with pytest.raises(HTTPException, match="504"):
                await first
            await asyncio.wait_for(asyncio.shield(closing), 5)
        finally:
            go.set()
        await closing

    run(test, model_path, deadline_ms=200)


def test_close_waits_for_the_model(model_path):
    async def test(workers):
        session = HeldUp()
        workers.model = dataclasses.replace(workers.model, session=session)
        task, gone = start(workers, Ask())
        await until(session.begun)
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        closing = asyncio.create_task(asyncio.to_thread(workers.close))
        await asyncio.sleep(0.3)
        assert not closing.done()
        session.go.set()
        await closing

    run(test, model_path)


def test_close_ends_all_threads(model_path):
    async def test(workers):
        started.update({*threading.enumerate()} - before)
        await start(workers, Ask())[0]

    before, started = {*threading.enumerate()}, set()
    run(test, model_path, threads=3)
    pool = [thread for thread in started if thread.name.startswith("worker_")]
    for thread in pool:
        thread.join(10)
    assert [thread.is_alive() for thread in pool] == [False] * 3


def test_the_expected_wait_counts_all_jobs_before_and_its_own(model_path):
    async def test(workers):
        assert workers.expected_wait() == 0
        workers._seconds_per_job = 2.0
        held = [await hold_up(workers) for _ in range(2)]
        assert workers.expected_wait() == 3  # Three jobs on two threads.
        queued, _ = start(workers, Ask())
        await asyncio.sleep(0)
        assert workers.expected_wait() == 4
        for go, _ in held:
            go.set()
        await asyncio.gather(queued, *(first for _, first in held))

    run(test, model_path, threads=2)


def test_the_time_per_job_is_a_moving_average(model_path):
    async def test(workers):
        (go, first), (later, second) = [await hold_up(workers) for _ in range(2)]
        await asyncio.sleep(0.3)
        go.set()
        await first
        seconds = workers._seconds_per_job
        assert seconds > 0.29
        assert workers.expected_wait() == seconds  # Two jobs on two threads: one thread is still busy.
        await start(workers, Ask())[0]
        assert 0.9 * seconds <= workers._seconds_per_job != seconds
        later.set()
        await second

    run(test, model_path, threads=2)


def test_a_query_certain_to_miss_its_deadline_is_refused(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        workers._seconds_per_job = 15.0
        with pytest.raises(HTTPException) as caught:
            await start(workers, Ask())[0]
        assert (caught.value.status_code, caught.value.headers["Retry-After"]) == (503, "10")
        workers._seconds_per_job = 10.0
        second, _ = start(workers, Ask())
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, second)
        assert 'jaxcnn_shed_total{reason="deadline"} 1.0' in workers._metrics.render().decode()

    run(test, model_path)


def test_all_threads_take_a_share(model_path):
    async def test(workers):
        go = threading.Event()
        queries = [Ask(go=go) for _ in range(8)]
        tasks = [start(workers, query)[0] for query in queries]
        await asyncio.sleep(0.2)
        go.set()
        await asyncio.gather(*tasks)
        assert len({name for query in queries for name in query.seen}) >= 2

    run(test, model_path, threads=3)
