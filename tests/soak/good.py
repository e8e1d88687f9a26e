"""Clients that are served whatever happens, and the balancer that chooses a service for them."""

import asyncio
import time
from random import Random

from tests.soak.models import Models
from tests.soak.questions import Picture, Question, make_question
from tests.soak.record import Record
from tests.soak.services import Service
from tests.soak.wire import Connection, Response, connect, connected, get

BROKEN = (OSError, asyncio.IncompleteReadError, TimeoutError)
"""How a connection fails."""

_HEALTH_SECONDS = 0.25
_MEAN_PAUSE = 0.1


class GoodClient:
    """Sends good requests, one after the other, on kept connections."""

    def __init__(self, address: str, services: list[Service], models: Models, record: Record, random: Random) -> None:
        self._address = address
        self._services = services
        self._models = models
        self._record = record
        self._random = random
        self._kept: dict[str, Connection] = {}
        self._asked_at = 0.0

    async def run(self, pictures: dict[str, list[Picture]], over: asyncio.Event) -> None:
        """Sends requests until the event is set."""
        try:
            while not over.is_set():
                services = [service for service in self._services if service.is_ready or service.waits_in_socket]
                await self._ask(self._random.choice(services), make_question(pictures, self._random))
                await asyncio.sleep(self._random.expovariate(1 / _MEAN_PAUSE))
        finally:
            self._close()

    def _close(self) -> None:
        for connection in self._kept.values():
            connection.abort()
        self._kept.clear()

    async def _ask(self, service: Service, question: Question) -> None:
        start = time.monotonic()
        # Take the kept connection, or a new one: one from before a stall may be about to be closed as idle.
        if self._asked_at < self._record.stalled_at:
            self._close()
        self._asked_at = start
        connection = self._kept.pop(service.name, None)
        is_kept = connection is not None and not connection.is_over
        if connection is None or connection.is_over:
            try:
                connection = await asyncio.wait_for(connect(service.port, self._address), self._record.patience)
            except BROKEN as error:
                self._note_refused_connection(service, start, error)
                return
        # Send the requests, and read a response to each.
        responses: list[Response] = []
        try:
            async with asyncio.timeout(self._record.patience):
                await connection.send(question.data)
                while len(responses) < len(question.answers) and not (responses and responses[-1].is_last):
                    responses.append(await connection.read())
        except BROKEN as error:
            connection.abort()
            is_stale = is_kept and not connection.has_answered and self._was_restarting(service, start)
            if is_stale:
                # The service closed an idle connection before it had the request: clients send it again.
                self._record.counts["stale connections"] += 1
            else:
                how = f"{'kept' if is_kept else 'new'} connection, after {time.monotonic() - start:.2f} s"
                when = f"{time.monotonic() - service.terminated_at:.2f} s after SIGTERM"
                self._record.fault_since(start, f"{service.name}: {question.kind} lost: {error!r}, {how}, {when}")
            return
        self._judge(service, question, responses, start)
        if responses[-1].is_last:
            connection.abort()
        else:
            self._kept[service.name] = connection

    def _note_refused_connection(self, service: Service, start: float, error: BaseException) -> None:
        """A balancer that notices late is refused by a service that has ended; no other service refuses."""
        if self._was_restarting(service, start) and not service.waits_in_socket:
            self._record.counts["refused connections"] += 1
        else:
            self._record.fault_since(start, f"{service.name}: no connection: {error!r}")

    def _was_restarting(self, service: Service, start: float) -> bool:
        return service.is_restarting or service.restarted_at > start

    def _judge(self, service: Service, question: Question, responses: list[Response], start: float) -> None:
        for response, expected in zip(responses, question.answers, strict=False):
            where = f"{service.name}: {question.kind}"
            if response.status == 503 and "retry-after" in response.headers:
                self._record.counts["refused"] += 1
            elif response.status != 200:
                self._record.fault_since(start, f"{where}: {response.status} {response.body[:200]!r}")
            elif not self._is_right(answers := _read(question, response), expected, start):
                self._record.fault(f"{where}: {answers} instead of {expected}")
            else:
                self._record.counts["good"] += 1
                self._record.served[service.name] += 1
        # Whoever pipelines repeats what comes after the last response of a connection: RFC 9112, section 9.3.2.
        if len(responses) < len(question.answers):
            self._record.counts["repeated"] += len(question.answers) - len(responses)
            if not self._was_restarting(service, start):
                self._record.fault_since(start, f"{service.name}: {question.kind} closed early")

    def _is_right(self, answers: list[str], expected: list[str], start: float) -> bool:
        since = start - self._record.patience
        return len(answers) == len(expected) and all(
            self._models.is_right(answer, name, since) for answer, name in zip(answers, expected, strict=True)
        )


def _read(question: Question, response: Response) -> list[str]:
    try:
        return question.read(response)
    except (ValueError, LookupError, TypeError):
        return [f"unreadable: {response.body[:200]!r}"]


async def balance(service: Service, record: Record) -> None:
    """Asks a service for its health all the time, as a balancer does: whether it is alive, and whether it is ready."""
    while True:
        start = time.monotonic()
        service.check_is_alive()
        try:
            service.is_ready = await asyncio.wait_for(_is_ready(service), record.patience)
            # Where a socket outlives its processes, a request waits in it while they start again.
            if not (service.is_restarting or service.restarted_at > start):
                record.health_seconds.append(time.monotonic() - start)
        except BROKEN as error:
            service.is_ready = False
            was_restarting = service.is_restarting or service.restarted_at > start
            if not was_restarting or (service.waits_in_socket and service.restarted_at > 0):
                record.fault_since(start, f"{service.name}: no answer about its health: {error!r}")
        await asyncio.sleep(_HEALTH_SECONDS)


async def _is_ready(service: Service) -> bool:
    # From the service's own address, a port that nobody listens to could be connected to itself.
    async with connected(service.port, "127.0.0.2") as connection:
        await connection.send(get("/healthz"))
        if (alive := await connection.read()).status != 200:
            raise OSError(f"/healthz responds {alive.status}")
        if alive.is_last:
            return False
        await connection.send(get("/readyz"))
        return (await connection.read()).status == 200
