"""How many cores this process may keep busy."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = _CGROUPS) -> int:
    """Returns the number of cores in the process's affinity mask, or fewer if a container's CPU quota is lower.

    Libraries that size their thread pools by the host start 64 threads in a container with a quota of two cores; the
    kernel then suspends all of them for most of each period.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([affinity, *(max(1, math.ceil(quota)) for quota in _quotas(cgroups))])


def _quotas(cgroups: Path) -> Iterator[float]:
    """Yields the CPU quotas of the process's control group, in cores, from versions 2 and 1 of the interface."""
    # Version 2: one file with "max" or a limit, and the period. It may be absent.
    try:
        limit, period = (cgroups / "cpu.max").read_text().split()
        yield int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    # Version 1: two files; a limit of -1 means no quota.
    try:
        limit = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        if int(limit) > 0:
            yield int(limit) / int((cgroups / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        pass
