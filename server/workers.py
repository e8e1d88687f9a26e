"""The threads that decode and classify, and the queue before them."""

import asyncio
import contextlib
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import errors
from server.metrics import Metrics
from server.model import Model
from server.protocols import AbandonedError, Answer, Decoded, Outputs, Query
from server.settings import Settings

# A larger body takes long to decode: those in its batch would wait for it.
_SMALL = 128 * 1024


class Job:
    """A query on its way through the queue."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.queued_at = time.monotonic()
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.is_in_model = False

    def is_wanted(self) -> bool:
        """Whether anyone still waits for the answer: the client is there, and the deadline to come."""
        return not self.future.done()

    def finish(self, result: Answer | Exception) -> None:
        """Hands over the result, unless nobody waits for it any more. Only for the event loop's thread."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Workers:
    """A pool of threads, each of which takes what is queued in small batches.

    Attributes:
        model: what the next batch is run on; may be replaced at any time.
    """

    def __init__(self, model: Model, settings: Settings, metrics: Metrics) -> None:
        self.model = model
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._running: list[Job] = []
        self._seconds_per_job = 0.0
        for i in range(settings.threads):
            # Daemons: the process does not wait at its end for a picture that nobody waits for.
            thread = threading.Thread(target=self._work, name=f"worker_{i}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                raise errors.StartError(
                    f"Of the {settings.threads} threads of JAXCNN_THREADS the system lets no more than {i} start:"
                    " lower it, or raise the limit of processes (that of the container, or `ulimit -u`)."
                ) from None

    def close(self) -> None:
        """Finishes what anyone waits for, then has the threads end, each after the picture that it is at."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            while any(job.is_wanted() or job.is_in_model for job in (*self._queue, *self._running)):
                self._changed.wait(0.05)  # What ends meanwhile does not notify: that would wake all idle threads.

    def expected_wait(self) -> float:
        """Seconds until a query queued now would be answered, by the speed of the latest ones.

        Zero while there is no other: so a slow query cannot have all others refused for ever.
        """
        before = len(self._queue) + len(self._running)
        return (before + 1) * self._seconds_per_job / self._settings.threads if before else 0.0

    async def answer(self, query: Query, gone: asyncio.Future[Any]) -> Answer:
        """Queues a query and waits for its answer.

        Args:
            query: what the client asks.
            gone: done once the client is no longer there.

        Raises:
            HTTPException: 503 the deadline would be missed, 504 it was missed, or what is wrong with the query.
            ClientDisconnect: the client is gone.
            Exception: the model failed.
        """
        seconds = self._settings.deadline_ms / 1000
        if (wait := self.expected_wait()) > seconds:
            self._metrics.shed.labels("deadline").inc()
            raise errors.busy(wait - seconds)
        job = Job(query)
        timer = self._loop.call_later(seconds, self._drop, job, _too_late(seconds))
        gone.add_done_callback(functools.partial(self._drop_gone, job))
        with self._changed:
            self._queue.append(job)
            self._metrics.queue_depth.set(len(self._queue))
            self._changed.notify()
        try:
            return await job.future
        finally:
            timer.cancel()
            del job  # An error has this frame in its traceback: each would keep the other, with body and picture.

    def _drop_gone(self, job: Job, _: asyncio.Future[Any]) -> None:
        self._drop(job, ClientDisconnect())

    def _drop(self, job: Job, error: Exception) -> None:
        """Ends the wait for an answer, and frees the place and the memory if nobody works on it yet."""
        if job.future.done():
            return
        with self._changed, contextlib.suppress(ValueError):
            self._queue.remove(job)
            self._metrics.queue_depth.set(len(self._queue))
        job.finish(error)

    def _work(self) -> None:
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Takes a batch and answers it; nothing of it is left in the thread that waits for the next."""
        batch = self._take()
        if not batch:
            return False
        start = time.monotonic()
        try:
            results = self._process(batch)
        except BaseException as error:  # A defect here must not end the thread, nor leave anyone waiting.
            results = [error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(batch)
        with self._changed:
            self._running = [job for job in self._running if job not in batch]
            seconds = (time.monotonic() - start) / len(batch)
            self._seconds_per_job += (0.1 if self._seconds_per_job else 1) * (seconds - self._seconds_per_job)
        with contextlib.suppress(RuntimeError):  # The event loop has ended, and everyone who waited with it.
            self._loop.call_soon_threadsafe(_finish, batch, results)
        return True

    def _take(self) -> list[Job]:
        """Waits for queries and takes its share of them; nothing once the pool is closed and the queue empty."""
        with self._changed:
            while not self._queue and not self._is_closed:
                self._changed.wait()
            batch = self._pick()
            self._running += batch
            self._metrics.queue_depth.set(len(self._queue))
            return batch

    def _pick(self) -> list[Job]:
        """The next queries that go together: a large one alone, or a few small ones."""
        share = min(math.ceil(len(self._queue) / self._settings.threads), self._settings.max_batch)
        batch: list[Job] = []
        while len(batch) < share:
            is_small = self._queue[0].query.size <= _SMALL
            if batch and not is_small:
                break
            batch.append(self._queue.popleft())
            if not is_small:
                break
        return batch

    def _process(self, batch: list[Job]) -> list[Answer | Exception]:
        """Decodes each query, runs the model on all their pictures, and writes each answer."""
        start = time.monotonic()
        for job in batch:
            self._metrics.queue_wait.observe(start - job.queued_at)
        model = self.model
        results: list[Answer | Exception | Decoded] = [_decode(job, model) for job in batch]
        self._metrics.observe_stage("decode", start)
        results = self._enter_model(batch, results)
        good = [each for each in results if isinstance(each, Decoded)]
        answers = iter(self._classify(model, good) if good else ())
        return [next(answers) if isinstance(each, Decoded) else each for each in results]

    def _enter_model(
        self, batch: list[Job], results: list[Answer | Exception | Decoded]
    ) -> list[Answer | Exception | Decoded]:
        """Leaves out what nobody waits for, and marks the rest: `close` must not have the process end during a run."""
        with self._changed:
            for job in batch:
                job.is_in_model = job.is_wanted()
        return [each if job.is_in_model else AbandonedError() for job, each in zip(batch, results, strict=True)]

    def _classify(self, model: Model, queries: Sequence[Decoded]) -> list[Answer | Exception]:
        start = time.monotonic()
        images = np.concatenate([each.images for each in queries]) if len(queries) > 1 else queries[0].images
        try:
            outputs = self._run(model, images, frozenset().union(*(each.outputs for each in queries)))
        except Exception as error:
            if len(queries) == 1:
                return [error]
            return [result for each in queries for result in self._classify(model, [each])]  # Who is it that fails?
        start = self._metrics.observe_stage("inference", start)
        answers: list[Answer | Exception] = []
        first = 0
        for each in queries:
            rows = slice(first, first := first + len(each.images))
            answers.append(_write(each, {name: array[rows] for name, array in outputs.items()}))
        self._metrics.observe_stage("encode", start)
        return answers

    def _run(self, model: Model, images: npt.NDArray[np.uint8], names: frozenset[str]) -> Outputs:
        """Runs the model on no more pictures at once than it is warm for."""
        size = self._settings.max_batch
        chunks = [images[i : i + size] for i in range(0, len(images), size)]
        for each in chunks:
            self._metrics.batch_size.observe(len(each))
        parts = [model.run(each, names) for each in chunks]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([each[name] for each in parts]) for name in names}


def _too_late(seconds: float) -> HTTPException:
    return HTTPException(504, f"The answer took longer than {seconds:g} seconds: try again, or send less at once.")


def _finish(batch: list[Job], results: list[Answer | Exception]) -> None:
    for job, result in zip(batch, results, strict=True):
        job.finish(result)


def _decode(job: Job, model: Model) -> Decoded | Exception:
    if not job.is_wanted():  # Others of its batch took long.
        return AbandonedError()
    # What is expected is told anew: a traceback would keep the body and the picture until there is a large collection.
    try:
        return job.query.decode(model, job.is_wanted)
    except HTTPException as error:
        return HTTPException(error.status_code, error.detail, error.headers)
    except AbandonedError:
        return AbandonedError()
    except Exception as error:
        return error


def _write(query: Decoded, outputs: Outputs) -> Answer | Exception:
    try:
        for name in query.outputs:
            if not np.isfinite(outputs[name]).all():
                raise FloatingPointError(f"the model computed {name} that are not finite")
        return query.answer({name: outputs[name] for name in query.outputs})
    except Exception as error:
        return error
