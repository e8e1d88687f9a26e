"""What a soak has seen: counts, faults, and what the services occupy."""

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_FAULTS = 50
"""Faults that are kept in words; all are counted."""

_STALL_SECONDS = 5.0
_POLL_SECONDS = 0.05
# What a process may grow by after the first rest: files that libraries keep open, and fragments of memory.
_SPARE_DESCRIPTORS = 2
_SPARE_SHARE, _SPARE_MB = 0.10, 16.0


@dataclass(frozen=True)
class Usage:
    """What the processes of a service occupy together."""

    rss_mb: float
    descriptors: int
    threads: int
    processes: int


@dataclass
class Record:
    """Counts what happened, and keeps what should not have."""

    patience: float
    """Seconds that any response may take on this machine."""
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    """Good requests that each service has answered in this phase."""
    health_seconds: list[float] = field(default_factory=list)
    rests: dict[str, list[Usage]] = field(default_factory=dict)
    """What each service occupied whenever nobody used it."""
    peaks_mb: dict[str, float] = field(default_factory=dict)
    stalled_at: float = -math.inf

    def fault(self, text: str) -> None:
        """Notes what should not have happened, and prints it."""
        print(f"fault: {text}", flush=True)
        self.counts["faults"] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(text)

    def fault_since(self, start: float, text: str) -> None:
        """Notes a fault that began at `start`, unless the machine has stopped everything since."""
        if start > self.stalled_at:
            self.fault(text)
        else:
            self.counts["stalled"] += 1

    def check_served(self, services: Iterable[str], phase: str) -> None:
        """Notes a fault for each service that answered no good request in a phase: one that refuses all loses none."""
        for service in services:
            if not self.served[service]:
                self.fault(f"{service}: no good request was answered in {phase}")
        self.served.clear()

    async def watch_stalls(self) -> None:
        """Notices when this process stood still, as on a suspended machine: time-outs then mean nothing."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            if now - before > _STALL_SECONDS:
                self.counts["stalls"] += 1
                self.stalled_at = now
            before = now

    def note_peak(self, service: str, rss_mb: float) -> None:
        """Notes the memory of a service under load."""
        self.peaks_mb[service] = max(rss_mb, self.peaks_mb.get(service, 0.0))

    def check_flat(self) -> None:
        """Notes a fault for everything that grew from rest to rest; see `find_growth`.

        All processes are compared with the largest of the first third of the rests: restarted ones begin small.
        """
        warm = [usage for rests in self.rests.values() for usage in rests[: max(1, len(rests) // 3)]]
        warm_mb = max(usage.rss_mb / usage.processes for usage in warm)
        for service, rests in self.rests.items():
            for text in find_growth(rests, warm_mb):
                self.fault(f"{service}: {text}")

    def summary(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        health = np.percentile(self.health_seconds, [50, 99, 100]) if self.health_seconds else [math.nan] * 3
        return {
            "counts": dict(sorted(self.counts.items())),
            "health_s": dict(zip(("p50", "p99", "max"), (round(float(value), 3) for value in health), strict=True)),
            "rests": {name: [vars(usage) for usage in rests] for name, rests in self.rests.items()},
            "peak_mb": {name: round(peak, 1) for name, peak in self.peaks_mb.items()},
            "faults": self.faults,
        }


async def poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits until a condition holds, and returns whether it does; the seconds count only while this process runs."""
    for _ in range(int(seconds / _POLL_SECONDS)):
        if condition():
            return True
        await asyncio.sleep(_POLL_SECONDS)
    return condition()


def find_growth(rests: Sequence[Usage], warm_mb: float) -> list[str]:
    """Compares what a service occupied at the last rest with what it may.

    From the first to the last rest, a process may open two more descriptors, and as many threads as asyncio's pool
    has, which grows as it is used. Its memory may exceed `warm_mb`, what a warm process takes, by a tenth and 16 MB.
    """
    first, last = rests[0], rests[-1]
    pool = min(32, (os.cpu_count() or 1) + 4)
    bounds = {
        "descriptors": (last.descriptors, first.descriptors + _SPARE_DESCRIPTORS * first.processes),
        "threads": (last.threads, first.threads + pool * first.processes),
        "MB": (last.rss_mb, (warm_mb * (1 + _SPARE_SHARE) + _SPARE_MB) * first.processes),
    }
    return [
        f"{found:.0f} {name} at rest, at most {bound:.0f} allowed"
        for name, (found, bound) in bounds.items()
        if found > bound
    ]
