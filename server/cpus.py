"""How many cores this process may keep busy."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = _CGROUPS) -> int:
    """Cores that the process may use: its affinity mask, and less where a container's quota is less.

    Libraries that size their pools by the host start 64 threads in a container that may use two cores; the kernel then
    stops all of them for most of each period.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([affinity, *(max(1, math.ceil(quota)) for quota in _quotas(cgroups))])


def _quotas(cgroups: Path) -> Iterator[float]:
    """The quota of the process's own control group in cores, where it has one, as version 2 and version 1 tell it."""
    try:
        limit, period = (cgroups / "cpu.max").read_text().split()
        yield int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass  # There is no such file, or it says "max".
    try:
        limit = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        if int(limit) > 0:  # -1 is none.
            yield int(limit) / int((cgroups / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        pass
