"""The queue and the worker threads, with a real model and queries that the tests hold up."""

import asyncio
import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import model, settings
from server.admission import Admission, Place, Places
from server.decode_memory import DecodeMemory
from server.errors import StartError
from server.fair_queue import FairQueue
from server.metrics import Metrics, ModelMetrics
from server.picture import Cost
from server.protocols import Answer, Decoded, Work
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

    def decode(self, model: model.Model, work: Work) -> Decoded:
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


def make_workers(loaded: model.Model, chosen: settings.Settings, memory: DecodeMemory | None = None) -> Workers:
    """Starts workers with metrics of their own, which `render` shows."""
    metrics = Metrics()
    workers = Workers(
        loaded, chosen, ModelMetrics(metrics, loaded.name), memory or DecodeMemory(chosen.max_decode_bytes)
    )
    workers.all_metrics = metrics
    return workers


def render(workers: Workers) -> str:
    return workers.all_metrics.render().decode()


def make_places(workers: Workers, **changes: object) -> Places:
    chosen = dataclasses.replace(workers._settings, **changes)
    return Places(Admission(chosen, workers.all_metrics), chosen, workers._metrics)


def run(test: Callable, model_path, **changes: object) -> None:
    """Runs a coroutine function with a pool of workers."""

    async def main() -> None:
        chosen = settings.Settings(**{"threads": 1, "max_batch": 4, "deadline_ms": 20_000, **changes})
        workers = make_workers(model.load(model_path, max_batch=4, threads=1), chosen)
        await test(workers)
        # Not after a failure: queries that are held up would delay it.
        await asyncio.to_thread(workers.close)

    asyncio.run(main())


def test_threads_that_the_system_does_not_start_are_a_start_error(model_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    async def main():
        monkeypatch.setattr(threading.Thread, "start", refuse)
        try:
            make_workers(loaded, settings.Settings(threads=64))
        finally:
            monkeypatch.undo()

    loaded = model.load(model_path, max_batch=4, threads=1)
    with pytest.raises(
        StartError, match=r"^The system starts only 0 of the 64 threads of JAXCNN_THREADS for colours: lower it"
    ):
        asyncio.run(main())


def start(workers: Workers, query: Ask, client: str = "") -> tuple[asyncio.Task, asyncio.Future]:
    """Starts a query. Returns its task, and the future to set when the client disconnects."""
    gone = asyncio.get_running_loop().create_future()
    place = Place(make_places(workers), client, workers.expected_wait)
    return asyncio.create_task(workers.answer(query, gone, place)), gone


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
        text = render(workers)
        assert 'jaxcnn_batch_size_bucket{le="2.0",model="colours"} 1.0' in text
        assert 'jaxcnn_batch_size_bucket{le="4.0",model="colours"} 2.0' in text

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
        text = render(workers)
        for limit, count in (("1.0", "1.0"), ("2.0", "2.0"), ("4.0", "3.0")):
            assert f'jaxcnn_batch_size_bucket{{le="{limit}",model="colours"}} {count}' in text
        assert 'jaxcnn_batch_size_sum{model="colours"} 7.0' in text

    run(test, model_path)


def test_a_batch_is_a_share_of_the_queue(model_path):
    async def test(workers):
        def pick(*sizes):
            for size in sizes:
                workers._light.queue.append(Job(Ask(size=size), ""))
            picked = [job.query.size for job in workers._pick()]
            workers._light.queue = FairQueue()
            return picked

        large = 10**6
        assert pick(1, 2, 3, 4, 5) == [1, 2]
        assert pick(*range(20)) == [0, 1, 2, 3]
        assert pick(large, 1, 2, 3) == [large]
        assert pick(1, large, 2, 3) == [1]

    run(test, model_path, threads=3)


@dataclass
class Cores:
    """Notes on how many cores each run was, and takes all pictures for red."""

    count: int
    seen: list[int]

    def run(self, names, inputs):
        self.seen.append(self.count)
        return [np.ones((len(inputs["image"]), 5), np.float32)]


@pytest.mark.parametrize(("threads", "busy", "cores"), [(2, 0, 2), (2, 1, 1), (4, 1, 4), (4, 2, 1)])
def test_runs_take_one_core_each_once_half_of_the_threads_are_busy(model_path, threads, busy, cores):
    async def test(workers):
        held = [await hold_up(workers) for _ in range(busy)]
        seen: list[int] = []
        workers.model = dataclasses.replace(workers.model, session=Cores(threads, seen), one_core=Cores(1, seen))
        for _ in range(2):
            await start(workers, Ask())[0]
        assert seen == [cores] * 2
        for go, task in held:
            go.set()
            await task

    run(test, model_path, threads=threads)


def test_a_failing_query_does_not_fail_its_batch(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        good, bad = Ask((0, 0, 250)), Ask((255, 255, 0))
        broken, refused = Ask(), Ask()
        broken.decode = lambda *_: 1 / 0

        def refuse(*_):
            raise HTTPException(413, "too large", {"connection": "close"})

        refused.decode = refuse
        tasks = [start(workers, query)[0] for query in (good, bad, broken, Ask((0, 250, 0)), refused)]
        await asyncio.sleep(0)
        go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert (answers[0].body, answers[3].body) == (b"blue", b"green")
        assert isinstance(answers[1], FloatingPointError)
        assert "probabilities" in str(answers[1])
        assert isinstance(answers[2], ZeroDivisionError)
        assert isinstance(answers[4], HTTPException)
        assert (answers[4].status_code, answers[4].detail) == (413, "too large")
        assert answers[4].headers == {"connection": "close"}
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
        assert len(workers._light.queue) == 0
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
        assert len(workers._light.queue) == 0
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
        assert 'jaxcnn_batch_size_count{model="colours"} 1.0' in render(workers)

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


def test_close_ends_the_threads_that_wait_while_a_picture_has_the_memory(model_path):
    async def test(workers):
        pool = [thread for thread in {*threading.enumerate()} - before if thread.name.startswith("worker_")]
        held = Costly(go=threading.Event())
        tasks = [start(workers, held)[0]]
        await until(held.begun)
        tasks.append(start(workers, Costly())[0])
        await start(workers, Ask())[0]  # It comes after the decision that the other is heavy.
        closing = asyncio.create_task(asyncio.to_thread(workers.close))
        await asyncio.sleep(0.2)
        held.go.set()
        await asyncio.gather(*tasks, closing)
        for thread in pool:
            await asyncio.to_thread(thread.join, 5)
        assert [thread.is_alive() for thread in pool] == [False] * 12

    before = {*threading.enumerate()}
    run(test, model_path, threads=12, max_decode_bytes=500_000_000)


def test_the_expected_wait_counts_all_jobs_before_and_its_own(model_path):
    async def test(workers):
        assert workers.expected_wait("") == 0
        workers._light.seconds_per_job = 2.0
        held = [await hold_up(workers) for _ in range(2)]
        assert workers.expected_wait("") == 3  # Three jobs on two threads.
        queued, _ = start(workers, Ask())
        await asyncio.sleep(0)
        assert workers.expected_wait("") == 4
        for go, _ in held:
            go.set()
        await asyncio.gather(queued, *(first for _, first in held))

    run(test, model_path, threads=2)


def test_the_expected_wait_can_be_computed_while_threads_take_jobs(model_path):
    """The order of the clients changes with every job that is taken."""

    async def test(workers):
        waiting = [start(workers, Ask(), str(i % 300))[0] for i in range(600)]
        await asyncio.sleep(0)
        while workers._light.queue:
            assert workers.expected_wait("new") >= 0
        await asyncio.gather(*waiting)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run(test, model_path, threads=2)
    finally:
        sys.setswitchinterval(before)


def test_the_time_per_job_is_a_moving_average(model_path):
    async def test(workers):
        (go, first), (later, second) = [await hold_up(workers) for _ in range(2)]
        await asyncio.sleep(0.3)
        go.set()
        await first
        seconds = workers._light.seconds_per_job
        assert seconds > 0.29
        assert workers.expected_wait("") == seconds  # Two jobs on two threads: one thread is still busy.
        await start(workers, Ask())[0]
        assert 0.9 * seconds <= workers._light.seconds_per_job != seconds
        later.set()
        await second

    run(test, model_path, threads=2)


def test_a_query_certain_to_miss_its_deadline_is_refused(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        workers._light.seconds_per_job = 15.0
        with pytest.raises(HTTPException) as caught:
            await start(workers, Ask())[0]
        assert (caught.value.status_code, caught.value.headers["Retry-After"]) == (503, "10")
        workers._light.seconds_per_job = 10.0
        second, _ = start(workers, Ask())
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, second)
        assert 'jaxcnn_shed_total{model="colours",reason="deadline"} 1.0' in render(workers)

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


# Two lanes


@dataclass
class Costly(Ask):
    """A query whose pictures cost as much as it says, and whose decoding begins after that."""

    cost: Cost = field(default_factory=lambda: Cost(pixels=50_000_000, bytes=300_000_000))

    def decode(self, model: model.Model, work: Work) -> Decoded:
        work.check_cost(self.cost)
        return super().decode(model, work)


def test_light_queries_pass_by_heavy_ones(model_path):
    async def test(workers):
        heavy = [Costly(go=threading.Event()) for _ in range(6)]
        tasks = [start(workers, query, f"client {i}")[0] for i, query in enumerate(heavy)]
        await until(heavy[0].begun)
        for _ in range(20):
            assert (await start(workers, Ask((0, 250, 0)), "other")[0]).body == b"green"
        assert sum(query.begun.is_set() for query in heavy) == 1
        for query in heavy:
            query.go.set()
        assert [answer.body for answer in await asyncio.gather(*tasks)] == [b"red"] * 6

    run(test, model_path, threads=2)


def test_heavy_queries_share_the_memory(model_path):
    async def test(workers):
        heavy = [Costly(go=threading.Event()) for _ in range(3)]
        tasks = [start(workers, query)[0] for query in heavy]
        await until(heavy[1].begun)
        await asyncio.sleep(0.1)
        assert [query.begun.is_set() for query in heavy] == [True, True, False]
        heavy[0].go.set()
        await until(heavy[2].begun)
        for query in heavy:
            query.go.set()
        await asyncio.gather(*tasks)

    run(test, model_path, threads=8, max_decode_bytes=700_000_000)


def test_one_thread_serves_both_lanes_in_turn(model_path):
    async def test(workers):
        order: list[str] = []
        go, first = await hold_up(workers)
        for kind, query in [("heavy", Costly()) for _ in range(3)] + [("light", Ask()) for _ in range(3)]:
            task, _ = start(workers, query, kind)
            task.add_done_callback(lambda _, kind=kind: order.append(kind))
        await asyncio.sleep(0)
        go.set()
        while len(order) < 6:
            await asyncio.sleep(0.01)
        await first
        assert order.index("heavy") < 5
        assert order.index("light") < 2

    run(test, model_path, threads=1, max_batch=1)


def test_clients_are_served_in_turn(model_path):
    async def test(workers):
        order: list[str] = []
        go, first = await hold_up(workers)
        for client in ["many"] * 10 + ["one"]:
            task, _ = start(workers, Ask(), client)
            task.add_done_callback(lambda _, client=client: order.append(client))
        await asyncio.sleep(0)
        go.set()
        while len(order) < 11:
            await asyncio.sleep(0.01)
        await first
        assert order.index("one") <= 1

    run(test, model_path, threads=1, max_batch=1)


def test_a_heavy_query_that_would_miss_its_deadline_is_503(model_path):
    async def test(workers):
        workers._heavy.seconds_per_job = 15.0
        held = Costly(go=threading.Event())
        first, _ = start(workers, held)
        await until(held.begun)
        with pytest.raises(HTTPException) as caught:
            await start(workers, Costly())[0]
        assert (caught.value.status_code, caught.value.headers["Retry-After"]) == (503, "10")
        assert (await start(workers, Ask((0, 250, 0)))[0]).body == b"green"
        held.go.set()
        assert (await first).body == b"red"

    run(test, model_path, threads=2)


def test_a_queued_query_gives_way_to_a_client_with_none(model_path):
    async def test(workers):
        places = make_places(workers, max_requests=3)
        go, first = await hold_up(workers)

        async def ask(client: str) -> bytes:
            with places.place(client, lambda _: 0) as place:
                place.enter()
                return (await workers.answer(Ask(), asyncio.get_running_loop().create_future(), place)).body

        greedy = [asyncio.create_task(ask("greedy")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="busy"):
            await ask("greedy")
        other = asyncio.create_task(ask("other"))
        await asyncio.sleep(0.05)
        assert [task.done() for task in greedy] == [False, False, True]
        go.set()
        assert await asyncio.gather(other, *greedy[:2], first) == [b"red", b"red", b"red", await first]
        with pytest.raises(HTTPException) as caught:
            await greedy[2]
        assert (caught.value.status_code, caught.value.headers["Connection"]) == (503, "close")

    run(test, model_path, threads=1)


@dataclass
class LateCostly(Costly):
    """A query that turns out to be heavy once `go` is set."""

    def decode(self, model: model.Model, work: Work) -> Decoded:
        decoded = Ask.decode(self, model, work)
        work.check_cost(self.cost)
        return decoded


def test_a_heavy_query_that_nobody_waits_for_does_not_count_as_refused(model_path):
    async def test(workers):
        workers._heavy.seconds_per_job = 15.0
        held, late = Costly(go=threading.Event()), LateCostly(go=threading.Event())
        first, _ = start(workers, held)
        await until(held.begun)
        task, gone = start(workers, late)
        await until(late.begun)
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        late.go.set()
        await start(workers, Ask())[0]
        assert 'jaxcnn_shed_total{model="colours",reason="deadline"} 0.0' in render(workers)
        held.go.set()
        await first

    run(test, model_path, threads=2)


def test_a_query_that_has_its_answer_does_not_count_as_evicted(model_path):
    async def test(workers):
        job = Job(Ask(), "")
        job.finish(Answer(b"answer"))
        workers._evict(job, Place(make_places(workers), "", workers.expected_wait))
        assert job.future.result().body == b"answer"
        assert 'jaxcnn_shed_total{model="colours",reason="evicted"} 0.0' in render(workers)

    run(test, model_path)


def test_a_query_whose_client_leaves_while_it_turns_out_to_be_heavy_is_not_queued_again(model_path, monkeypatch):
    """The thread may not see the query between its removal from the queue and its end."""

    def finish(job, result):
        late.go.set()
        time.sleep(0.2)  # Time for the thread, if it need not wait.
        original(job, result)

    async def test(workers):
        task, gone = start(workers, late)
        await until(late.begun)
        monkeypatch.setattr(Job, "finish", finish)
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        monkeypatch.undo()
        await start(workers, Ask())[0]
        assert len(late.seen) == 1

    original, late = Job.finish, LateCostly(go=threading.Event())
    run(test, model_path, threads=2)


def test_close_does_not_wait_for_a_heavy_query_that_nobody_wants(model_path):
    async def test(workers):
        query = Costly(go=threading.Event())
        task, gone = start(workers, query)
        await until(query.begun)
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        async with asyncio.timeout(10):
            await asyncio.to_thread(workers.close)  # The picture is still being decoded.
        query.go.set()

    run(test, model_path, threads=2)


def test_a_heavy_query_leaves_the_queue_with_its_client(model_path):
    async def test(workers):
        held, other = Costly(go=threading.Event()), Costly()
        first, _ = start(workers, held)
        await until(held.begun)
        task, gone = start(workers, other)
        await start(workers, Ask())[0]  # It comes after the decision that the other is heavy.
        assert 'jaxcnn_queue_depth{model="colours"} 1.0' in render(workers)
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        assert 'jaxcnn_queue_depth{model="colours"} 0.0' in render(workers)
        held.go.set()
        await first
        assert not other.begun.is_set()

    run(test, model_path, threads=2)


def test_a_heavy_query_waits_for_those_of_its_client(model_path):
    async def test(workers):
        workers._heavy.seconds_per_job = 6.0
        held = Costly(go=threading.Event())
        tasks = [start(workers, held, "many")[0]]
        await until(held.begun)
        for client in ("many", "many", "one"):
            tasks.append(start(workers, Costly(), client)[0])
            await start(workers, Ask())[0]  # It comes after the decision that the other is heavy.
        with pytest.raises(HTTPException) as caught:
            await start(workers, Costly(), "many")[0]
        # Three before it, and one of the other client: 30 s, of which it has 20.
        assert (caught.value.status_code, caught.value.headers["Retry-After"]) == (503, "10")
        held.go.set()
        assert [answer.body for answer in await asyncio.gather(*tasks)] == [b"red"] * 4

    run(test, model_path, threads=2)


def test_the_time_in_the_queue_is_measured(model_path):
    async def test(workers):
        go, first = await hold_up(workers)
        second, _ = start(workers, Ask())
        await asyncio.sleep(0.2)
        go.set()
        await asyncio.gather(first, second)
        count, seconds = workers._metrics.statistics()["queue"]
        assert (count, 0.2 <= seconds < 10) == (2, True)

    run(test, model_path)


def test_a_heavy_query_waits_in_the_queue_once(model_path):
    async def test(workers):
        await start(workers, Costly())[0]
        assert workers._metrics.statistics()["queue"][0] == 1
        assert workers._metrics.statistics()["batch"] == (1, 1)

    run(test, model_path, threads=2)


# Two models


def run_two(test, model_path, **changes):
    """Runs a coroutine function with two models' workers, which share the memory for decoding."""

    async def main():
        chosen = settings.Settings(**{"threads": 3, "deadline_ms": 20_000, **changes})
        memory, loaded = DecodeMemory(chosen.max_decode_bytes), model.load(model_path, max_batch=4, threads=1)
        pair = [make_workers(loaded, chosen, memory) for _ in range(2)]
        await test(*pair)
        for workers in pair:
            await asyncio.to_thread(workers.close)

    asyncio.run(main())


def test_large_pictures_of_all_models_share_the_memory(model_path):
    async def test(one, other):
        first, second = Costly(go=threading.Event()), Costly(go=threading.Event())
        tasks = [start(one, first)[0]]
        await until(first.begun)
        tasks.append(start(other, second)[0])
        assert (await start(other, Ask((0, 250, 0)))[0]).body == b"green"
        assert not second.begun.is_set()
        first.go.set()
        await until(second.begun)
        second.go.set()
        await asyncio.gather(*tasks)

    run_two(test, model_path, max_decode_bytes=500_000_000)


def test_a_picture_that_needs_all_memory_is_not_passed_by_for_ever(model_path):
    async def test(one, other):
        order = []
        held = Costly(go=threading.Event())
        tasks = [start(one, held)[0]]
        await until(held.begun)
        largest = Costly(cost=Cost(pixels=50_000_000, bytes=700_000_000))
        for name, workers, query in [("largest", other, largest), *(("small", one, Costly()) for _ in range(3))]:
            task, _ = start(workers, query)
            task.add_done_callback(lambda _, name=name: order.append(name))
            tasks.append(task)
            await asyncio.sleep(0.1)
        assert order == []  # The small ones have room, but came later.
        held.go.set()
        await asyncio.gather(*tasks)
        assert order[0] == "largest"

    run_two(test, model_path, max_decode_bytes=700_000_000)


def test_those_behind_a_picture_go_on_once_its_client_leaves(model_path):
    async def test(one, other):
        held, largest = Costly(go=threading.Event()), Costly(cost=Cost(pixels=50_000_000, bytes=700_000_000))
        first, _ = start(one, held)
        await until(held.begun)
        task, gone = start(other, largest)
        await start(other, Ask())[0]  # It comes after the decision that the other is heavy.
        behind, _ = start(one, Costly())
        await start(one, Ask())[0]
        assert not behind.done()
        gone.set_result(None)
        with pytest.raises(ClientDisconnect):
            await task
        async with asyncio.timeout(5):
            assert (await behind).body == b"red"
        held.go.set()
        await first

    run_two(test, model_path, max_decode_bytes=700_000_000)
