"""What an operator does while the services are used: new models, damaged ones, restarts, and room on the disk."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from random import Random

from tests.soak.good import BROKEN
from tests.soak.models import Models
from tests.soak.record import Record, poll
from tests.soak.services import Service
from tests.soak.wire import connected, get


class Operator:
    """Does everything that an operator may do, in random order."""

    def __init__(self, services: list[Service], models: Models, record: Record, random: Random) -> None:
        self._services = services
        self._models = models
        self._record = record
        self._random = random

    async def run(self, over: asyncio.Event) -> None:
        """Does everything once, and again until the event is set."""
        events: list[Callable[[], Awaitable[None]]] = [
            *(self._swap_colours, self._swap_tiny, self._damage, self._damage, self._empty_logs, self._fill_logs),
            *(lambda service=service: self._restart(service) for service in self._services if service.name != "steady"),
        ]
        while True:
            for event in self._random.sample(events, len(events)):
                await event()
                await asyncio.sleep(self._random.uniform(0.1, 1))
            if over.is_set():
                return

    async def _swap_colours(self) -> None:
        self._models.replace_colours()
        self._record.counts["swaps"] += 1

    async def _swap_tiny(self) -> None:
        self._models.replace_tiny()
        self._record.counts["swaps"] += 1

    async def _damage(self) -> None:
        """Puts a damaged file in place until all services have rejected it, then good ones."""
        self._models.damage(self._random)
        await self._wait_for_warning(expected=True)
        await self._swap_colours()
        await self._swap_tiny()
        await self._wait_for_warning(expected=False)
        self._record.counts["damaged files"] += 1

    async def _wait_for_warning(self, *, expected: bool) -> None:
        start = time.monotonic()
        for service in self._services:
            # Connections go to any process of the service: ask several times.
            seen = 0
            while seen < 4 * service.processes:
                seen = seen + 1 if await self._has_warning(service) == expected else 0
                if time.monotonic() - start > 2 * self._record.patience:
                    self._record.fault_since(start, f"{service.name}: warning of a damaged model is not {expected}")
                    return
                await asyncio.sleep(0.1)

    async def _has_warning(self, service: Service) -> bool | None:
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._record.patience), connected(service.port, "127.0.0.1") as connection:
                await connection.send(get("/readyz"))
                return "warning" in json.loads((await connection.read()).body)
        except BROKEN as error:
            self._record.fault_since(start, f"{service.name}: no answer about its models: {error!r}")
            return None

    async def _empty_logs(self) -> None:
        """Makes room on the disks of the logs, which have to go on."""
        for service in self._services:
            service.empty_log()
        if not await poll(
            lambda: all(os.path.getsize(service.log) for service in self._services), self._record.patience
        ):
            self._record.fault("a log does not go on after its disk has room again")

    async def _fill_logs(self) -> None:
        for service in self._services:
            service.fill_log()
        self._record.counts["full disks"] += 1

    async def _restart(self, service: Service) -> None:
        """Restarts a service, with new model files while it is away."""
        restart = asyncio.ensure_future(service.restart())
        await asyncio.sleep(self._random.uniform(0, 4))
        await self._swap_colours()
        await restart
        self._record.counts["restarts"] += 1
