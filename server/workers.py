"""The worker threads, which decode pictures and run the model, and the queue in front of them."""

import asyncio
import contextlib
import functools
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import errors
from server.admission import Place
from server.decode_memory import DecodeMemory
from server.fair_queue import FairQueue
from server.metrics import ModelMetrics
from server.model import Model
from server.picture import Cost
from server.protocols import AbandonedError, Answer, Decoded, Outputs, Query
from server.settings import Settings
from server.tracing import Stage

# A larger body takes long to decode, and the others of its batch would wait for it.
_SMALL_BYTES = 128 * 1024

# Weight of the latest batch in the moving average of the time per query.
_WEIGHT = 0.1

# A query whose pictures cost more than this waits for a turn in the other queue: 4 megapixels take some .15 s.
_LIGHT = Cost(pixels=4_000_000, bytes=32_000_000)


class _HeavyError(Exception):
    """The pictures of a query cost more than `_LIGHT`, so that they are decoded later."""


class Job:
    """A query on its way through the queues; `stages` is where its times are noted."""

    def __init__(self, query: Query, client: str, stages: list[Stage] | None = None) -> None:
        self.query = query
        self.client = client
        self.stages = [] if stages is None else stages
        self.queued_at = time.monotonic()
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.is_in_model = False
        self.cost: Cost | None = None
        """What its pictures cost, if that is more than `_LIGHT`."""

    def check_cost(self, cost: Cost) -> None:
        """Notes what the pictures cost, before any is decoded.

        Raises:
          _HeavyError: too much for the queue in which the job has been so far.
        """
        if self.cost is None and not cost.is_within(_LIGHT):
            self.cost = cost
            raise _HeavyError

    def is_wanted(self) -> bool:
        """Whether anyone still waits for the answer: the client is there, and the deadline has not passed."""
        return not self.future.done()

    def finish(self, result: Answer | Exception) -> None:
        """Delivers the result, unless nobody waits for it any more. Call it only on the event loop's thread."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class _Lane:
    """A queue, the jobs from it that are running, and how long one takes on average."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.queue: FairQueue[Job] = FairQueue()
        self.running: list[Job] = []
        self.seconds_per_job = 0.0

    def expected_wait(self, client: str) -> float:
        """Returns the seconds until a new job of this client would be done; zero if it would be the only one."""
        before = self.queue.count_before(client) + len(self.running)
        return (before + 1) * self.seconds_per_job / self.threads if before else 0.0

    def may_start(self) -> bool:
        """Whether there is a job and a thread for it."""
        return bool(self.queue) and len(self.running) < self.threads

    def waits_since(self) -> float:
        """Returns when the next job was queued."""
        return self.queue.first().queued_at

    def bytes_needed(self) -> int:
        """Returns the memory that decoding the pictures of the next job takes, if it is a heavy one."""
        return _bytes(self.queue.first())

    def finish(self, batch: list[Job], seconds: float) -> None:
        """Removes a batch that took so long."""
        self.running = [job for job in self.running if job not in batch]
        latest = seconds / len(batch)
        self.seconds_per_job += (_WEIGHT if self.seconds_per_job else 1) * (latest - self.seconds_per_job)


class Workers:
    """A pool of threads that answer queued queries to one model in small batches.

    Every query begins in the light lane. One whose headers say that its pictures cost much moves to the heavy lane,
    which never has all threads, nor more memory than there is for all models: light queries pass by.

    Attributes:
      model: the model that the next batch runs on; may be replaced at any time.
    """

    def __init__(self, model: Model, settings: Settings, metrics: ModelMetrics, memory: DecodeMemory) -> None:
        self.model = model
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        threads = settings.threads_per_model
        self._light = _Lane(threads)
        self._heavy = _Lane(max(1, threads - 1))
        self._memory = memory
        self._was_heavy = False
        self._busy = 0
        self._changed = memory.join(self._heavy)
        self._is_closed = False
        for i in range(threads):
            # Daemon threads, so that the process does not end later for a picture that nobody waits for.
            thread = threading.Thread(target=self._work, name=f"worker_{i}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                raise errors.StartError(
                    f"The system starts only {i} of the {threads} threads of JAXCNN_THREADS for {model.name}: lower it,"
                    " or raise the limit of processes (the container's, or `ulimit -u`)."
                ) from None

    def close(self) -> None:
        """Waits for all wanted answers, then lets each thread end after the picture that it is decoding."""
        with self._changed:
            self._is_closed = True
        # Poll: finished batches notify one waiting thread, which has to be one that takes the next.
        while self._is_needed():
            time.sleep(0.05)
        with self._changed:
            self._changed.notify_all()

    def _is_needed(self) -> bool:
        """Whether there is a job that somebody waits for, or that is in the model."""
        with self._changed:
            jobs = [job for lane in (self._light, self._heavy) for job in (*lane.queue, *lane.running)]
            return any(job.is_wanted() or job.is_in_model for job in jobs)

    def expected_wait(self, client: str) -> float:
        """Returns the seconds until a query that this client sends now would be answered, judging by the latest ones.

        Zero while there is no other query: otherwise one slow query could get all later ones refused.
        """
        # The threads reorder the queue.
        with self._changed:
            return self._light.expected_wait(client)

    async def answer(
        self, query: Query, gone: asyncio.Future[Any], place: Place, stages: list[Stage] | None = None
    ) -> Answer:
        """Queues a query and waits for its answer.

        Args:
          query: the client's request.
          gone: a future that is done once the client has disconnected.
          place: what the request occupies, and may have to leave to others.
          stages: where to note the times of its batch.

        Raises:
          HTTPException: 503 the deadline is out of reach, or others need the place; 504 the deadline has passed; or
            what is wrong with the query.
          ClientDisconnect: the client is gone.
          Exception: the model failed.
        """
        # Refuse at once what is certain to miss its deadline.
        seconds = self._settings.deadline_ms / 1000
        if (wait := self.expected_wait(place.client)) > seconds:
            raise self._shed(wait - seconds)
        # Queue the job. Four events can end the wait: the answer, the deadline, the client's disconnect, an eviction.
        job = Job(query, place.client, stages)
        timer = self._loop.call_later(seconds, self._drop, job, _too_late(seconds))
        gone.add_done_callback(functools.partial(self._drop_gone, job))
        place.allow_eviction(functools.partial(self._evict, job, place))
        with self._changed:
            self._light.queue.append(job)
            self._count_queued()
            self._changed.notify()
        try:
            return await job.future
        finally:
            timer.cancel()
            place.allow_eviction(None)
            # An error has this frame in its traceback, and the job has the error: the cycle would keep body and
            # picture in memory.
            del job

    def _shed(self, wait: float) -> HTTPException:
        self._metrics.shed("deadline")
        return errors.busy(wait)

    def _count_queued(self) -> None:
        self._metrics.queue_depth.set(len(self._light.queue) + len(self._heavy.queue))

    def _drop_gone(self, job: Job, _: asyncio.Future[Any]) -> None:
        self._drop(job, ClientDisconnect())

    def _evict(self, job: Job, place: Place) -> None:
        # The error counts as a refusal: make none for a query that has its answer.
        if job.is_wanted():
            self._drop(job, place.evicted())

    def _drop(self, job: Job, error: Exception) -> None:
        """Ends the wait for an answer; a job that is still queued leaves the queue."""
        if not job.is_wanted():
            return
        with self._changed:
            with contextlib.suppress(ValueError):
                (self._heavy if job.cost else self._light).queue.remove(job)
                self._count_queued()
                # Others may have waited for the memory that this job was to have.
                self._memory.notify()
            # Before a thread that has just found the job to be heavy can queue it again.
            job.finish(error)

    def _work(self) -> None:
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Answers one batch, and returns whether there may be more.

        A separate function, so that a thread that waits for the next batch keeps nothing of the last in memory.
        """
        lane, batch = self._take()
        if not batch:
            return False
        start = time.monotonic()
        try:
            results = self._process(batch)
        except BaseException as error:
            # A defect here must neither end the thread nor leave clients waiting.
            results = [error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(batch)
        with self._changed:
            self._busy -= 1
            lane.finish(batch, time.monotonic() - start)
            if lane is self._heavy:
                self._memory.give_back(_bytes(batch[0]))
            # Move the jobs that turned out to be heavy; those have no result yet.
            done = [
                (job, self._defer(job) if isinstance(result, _HeavyError) else result)
                for job, result in zip(batch, results, strict=True)
            ]
            self._changed.notify()
        # If the event loop has ended, so has everyone who waited.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_finish, done)
        return True

    def _defer(self, job: Job) -> Exception | None:
        """Moves a job to the heavy lane; returns its error if it would miss its deadline there."""
        if not job.is_wanted():
            return None
        left = job.queued_at + self._settings.deadline_ms / 1000 - time.monotonic()
        if (wait := self._heavy.expected_wait(job.client)) > left:
            return self._shed(wait - left)
        self._heavy.queue.append(job)
        self._count_queued()
        return None

    def _take(self) -> tuple[_Lane, list[Job]]:
        """Waits for jobs and takes a batch; an empty one once the pool is closed and the queues are empty."""
        with self._changed:
            while True:
                # Neither lane waits for more than one batch of the other.
                may_be_heavy = self._memory.may_take(self._heavy)
                if may_be_heavy and not (self._was_heavy and self._light.queue):
                    lane, batch = self._heavy, [self._heavy.queue.pop()]
                    self._memory.take(_bytes(batch[0]))
                    break
                if self._light.queue or (self._is_closed and not self._heavy.queue):
                    lane, batch = self._light, self._pick()
                    break
                self._changed.wait()
            self._was_heavy = lane is self._heavy
            self._busy += bool(batch)
            lane.running += batch
            self._count_queued()
            return lane, batch

    def _pick(self) -> list[Job]:
        """Removes the next batch from the light lane: a large job alone, or this thread's share of small ones."""
        queue = self._light.queue
        share = min(math.ceil(len(queue) / self._light.threads), self._settings.max_batch)
        batch: list[Job] = []
        while len(batch) < share:
            is_small = queue.first().query.size <= _SMALL_BYTES
            if batch and not is_small:
                break
            batch.append(queue.pop())
            if not is_small:
                break
        return batch

    def _process(self, batch: list[Job]) -> list[Answer | Exception]:
        """Decodes each query, runs the model on all their pictures, and encodes each answer."""
        start = time.monotonic()
        # One model for the whole batch, even if it is replaced meanwhile.
        model = self.model
        results: list[Answer | Exception | Decoded] = [_decode(job, model) for job in batch]
        for job, result in zip(batch, results, strict=True):
            if not isinstance(result, _HeavyError):
                self._metrics.queue_wait.observe(start - job.queued_at)
        decoded = self._metrics.observe_stage("decode", start)
        results, is_crowded = self._enter_model(batch, results)
        good = [result for result in results if isinstance(result, Decoded)]
        answers = iter(self._classify(model, good, is_crowded=is_crowded) if good else ())
        # Note the times before the answers leave.
        end = time.monotonic()
        for job in batch:
            times = ("queue", job.queued_at, start), ("decode", start, decoded), ("inference", decoded, end)
            job.stages[:] = [Stage(*named) for named in times]
        return [next(answers) if isinstance(result, Decoded) else result for result in results]

    def _enter_model(
        self, batch: list[Job], results: list[Answer | Exception | Decoded]
    ) -> tuple[list[Answer | Exception | Decoded], bool]:
        """Drops the jobs that nobody waits for, and marks the others as running, so that `close` waits for them.

        Returns:
          The results, and whether more than half of the threads are busy: a run on all cores would wait for cores that
          others use.
        """
        with self._changed:
            for job, result in zip(batch, results, strict=True):
                job.is_in_model = isinstance(result, Decoded) and job.is_wanted()
            is_crowded = 2 * self._busy > self._light.threads
        left = [
            AbandonedError() if isinstance(result, Decoded) and not job.is_in_model else result
            for job, result in zip(batch, results, strict=True)
        ]
        return left, is_crowded

    def _classify(self, model: Model, queries: Sequence[Decoded], *, is_crowded: bool) -> list[Answer | Exception]:
        """Returns the answer or the error of each query, after one run of the model if it does not fail."""
        # Run the model on the pictures of all queries.
        start = time.monotonic()
        images = np.concatenate([query.images for query in queries]) if len(queries) > 1 else queries[0].images
        try:
            names = frozenset[str]().union(*(query.outputs for query in queries))
            outputs = self._run(model, images, names, is_crowded=is_crowded)
        except Exception as error:
            if len(queries) == 1:
                return [error]
            # Run them one by one, to find out which of them fails.
            return [result for query in queries for result in self._classify(model, [query], is_crowded=is_crowded)]
        start = self._metrics.observe_stage("inference", start)
        # Give each query the rows of its pictures.
        answers: list[Answer | Exception] = []
        first = 0
        for query in queries:
            rows = slice(first, first := first + len(query.images))
            answers.append(_encode(query, {name: array[rows] for name, array in outputs.items()}))
        self._metrics.observe_stage("encode", start)
        return answers

    def _run(self, model: Model, images: npt.NDArray[np.uint8], names: frozenset[str], *, is_crowded: bool) -> Outputs:
        """Runs the model in chunks of at most `max_batch` pictures, the sizes for which it has been warmed up."""
        size = self._settings.max_batch
        chunks = [images[i : i + size] for i in range(0, len(images), size)]
        for chunk in chunks:
            self._metrics.batch_size.observe(len(chunk))
        parts = [model.run(chunk, names, is_crowded=is_crowded) for chunk in chunks]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _too_late(seconds: float) -> HTTPException:
    return HTTPException(504, f"The answer took longer than {seconds:g} s: try again, or send fewer pictures at once.")


def _bytes(job: Job) -> int:
    """Returns the memory that decoding the pictures of a heavy job takes."""
    assert job.cost is not None
    return job.cost.bytes


def _finish(done: list[tuple[Job, Answer | Exception | None]]) -> None:
    """Delivers results; a job without one is not finished yet."""
    for job, result in done:
        if result is not None:
            job.finish(result)


def _decode(job: Job, model: Model) -> Decoded | Exception:
    # Decoding the jobs before it in the batch may have taken long.
    if not job.is_wanted():
        return AbandonedError()
    # Expected errors are created anew: with its traceback, an error would keep the body and the picture in memory until
    # the next full garbage collection.
    try:
        return job.query.decode(model, job)
    except HTTPException as error:
        return HTTPException(error.status_code, error.detail, error.headers)
    except AbandonedError:
        return AbandonedError()
    except _HeavyError:
        return _HeavyError()
    except Exception as error:
        return error


def _encode(query: Decoded, outputs: Outputs) -> Answer | Exception:
    try:
        for name in query.outputs:
            if not np.isfinite(outputs[name]).all():
                raise FloatingPointError(f"the model computed {name} that are not finite")
        return query.answer({name: outputs[name] for name in query.outputs})
    except Exception as error:
        return error
