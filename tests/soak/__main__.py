"""Soaks the server: `python -m tests.soak --hours H`.

Three services run at once: one process that is never restarted, one that inherits its socket and is restarted, and one
with two workers that is restarted behind a balancer. Good clients send requests of all wire formats to two models, and
compare each response with a reference. Bad clients are slow, malformed, hostile or gone. An operator swaps model files,
whole and damaged, restarts services, and fills and empties the disks of their logs. All of it is drawn from the
seed. Every five minutes at most everybody rests; what the services occupy then must not grow (`record.find_growth`).

It prints one line a minute and one JSON object last, and ends with status 1 if there was a fault.
"""

import argparse
import asyncio
import contextlib
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from tests.soak import bad
from tests.soak.events import Operator
from tests.soak.good import GoodClient, balance
from tests.soak.models import Models
from tests.soak.questions import find_pictures
from tests.soak.record import Record, Usage
from tests.soak.services import BUSY_MB, Service

_GOOD_CLIENTS = 6
_PHASE_SECONDS = 300
_NAMES = ("steady", "socket", "workers")


class Soak:
    """One soak.

    Attributes:
      record: what it has seen.
    """

    def __init__(self, folder: Path, seed: int, patience: float) -> None:
        self.record = Record(patience)
        self._seed = seed
        self._pictures = find_pictures(self._random("pictures"))
        (folder / "models").mkdir()
        self._models = Models(folder / "models")
        self._services = [Service(name, folder, self._models.setting, self.record) for name in _NAMES]

    def _random(self, name: str) -> Random:
        return Random(f"{self._seed}/{name}")

    async def run(self, seconds: float) -> None:
        """Soaks in phases with a rest after each; the last comparison is with the first rest."""
        phases = max(2, math.ceil(seconds / _PHASE_SECONDS))
        async with asyncio.TaskGroup() as tasks:
            watchers = [
                tasks.create_task(self.record.watch_stalls()),
                tasks.create_task(self._print_minutes()),
                *(tasks.create_task(balance(service, self.record)) for service in self._services),
            ]
            try:
                for service in self._services:
                    await service.wait_until_ready()
                for number in range(phases):
                    await self._soak(f"phase {number}", seconds / phases)
                    await self._rest()
                for watcher in watchers:
                    watcher.cancel()
                for service in self._services:
                    await service.stop()
                    service.read_log()
            finally:
                for service in self._services:
                    service.kill()
        self._check_memory()
        self.record.check_flat()

    async def _soak(self, phase: str, seconds: float) -> None:
        """Lets everybody do what they do, all at once, until the operator has done everything at least once."""
        over, operated = asyncio.Event(), asyncio.Event()
        arguments = self._services, self.record
        async with asyncio.TaskGroup() as tasks:
            # The bad, whose addresses are theirs alone.
            worse = [
                tasks.create_task(
                    bad.misbehave(kind, f"127.0.2.{i + 1}", *arguments, self._random(f"{phase}/{kind.__name__}"))
                )
                for i, kind in enumerate(bad.KINDS)
            ]
            # The good.
            for i in range(_GOOD_CLIENTS):
                name = f"{phase}/client {i}"
                client = GoodClient(f"127.0.1.{i + 1}", self._services, self._models, self.record, self._random(name))
                tasks.create_task(client.run(self._pictures, operated))
            operator = Operator(self._services, self._models, self.record, self._random(f"{phase}/operator"))
            operation = tasks.create_task(operator.run(over))
            await asyncio.sleep(seconds)
            over.set()
            await operation
            operated.set()
            for task in worse:
                task.cancel()
        self.record.check_served(_NAMES, phase)

    async def _rest(self) -> None:
        """Waits until the services occupy no less than a second before, and notes it."""
        for service in self._services:
            before, now = None, _usage(service)
            start = time.monotonic()
            while before is None or now.descriptors < before.descriptors or now.rss_mb < before.rss_mb - 1:
                await asyncio.sleep(1)
                before, now = now, _usage(service)
                if time.monotonic() - start > self.record.patience:
                    break
            self.record.rests.setdefault(service.name, []).append(await _least(service))

    def _check_memory(self) -> None:
        """Compares the largest memory with the bound in the README."""
        for service in self._services:
            bound = self.record.rests[service.name][0].rss_mb + BUSY_MB * service.processes
            if (peak := self.record.peaks_mb.get(service.name, 0)) > bound:
                self.record.fault(f"{service.name}: {peak:.0f} MB, at most {bound:.0f} MB allowed")

    async def _print_minutes(self) -> None:
        start = time.monotonic()
        while True:
            # Look at the memory each second, as peaks are short.
            for _ in range(60):
                await asyncio.sleep(1)
                for service in self._services:
                    self.record.note_peak(service.name, service.usage().rss_mb)
            counts = self.record.counts
            shown = ("good", "refused", "swaps", "damaged files", "restarts", "full disks", "stalls", "faults")
            usage = ", ".join(f"{service.name} {service.usage().rss_mb:.0f} MB" for service in self._services)
            minute = round((time.monotonic() - start) / 60)
            print(f"{minute} min: " + ", ".join(f"{counts[name]} {name}" for name in shown) + f"; {usage}", flush=True)


def _usage(service: Service) -> Usage:
    return service.usage()


async def _least(service: Service) -> Usage:
    """Returns the usage without the connection of the balancer, which comes and goes."""
    found = []
    for _ in range(10):
        found.append(service.usage())
        await asyncio.sleep(0.07)
    return min(found, key=lambda usage: usage.descriptors)


def soak(hours: float, seed: int, patience: float) -> dict[str, Any]:
    """Runs a soak, and returns its result; without `faults` everything held."""
    with tempfile.TemporaryDirectory() as folder:
        running = Soak(Path(folder), seed, patience)
        start = time.monotonic()
        asyncio.run(running.run(hours * 3600))
        return {"hours": round((time.monotonic() - start) / 3600, 4), "seed": seed, **running.record.summary()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=6, help="how long, without the start and the rests")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--patience", type=float, default=30, help="seconds that a response may take on this machine")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        result = soak(options.hours, options.seed, options.patience)
        print(json.dumps(result))
        sys.exit(1 if result["faults"] else 0)
    sys.exit(130)


if __name__ == "__main__":
    main()
