"""The memory that a program needs, and the memory that is free for it."""

from pathlib import Path
from typing import Any

import jax

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux says what is free, of which group of processes this one is, and what limits groups have."""


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the memory that a program takes while it runs, beside its arguments; 0 if its compiler does not say."""
    memory: Any = compiled.memory_analysis()
    if memory is None:
        return 0
    return int(memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes)


def free_bytes() -> int | None:
    """Returns the memory that is free on this process's first device; None if that is not known."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    found = [bytes for bytes in (_free_here(), _free_in_group()) if bytes is not None]
    return min(found, default=None)


def describe_shortage(needed: int, what: str) -> str:
    """Returns that something needs more memory than is free, and what to do; empty if there is enough.

    Args:
      needed: the bytes that it needs.
      what: what it is, such as `a step`.
    """
    free = free_bytes()
    if free is None or needed <= free:
        return ""
    return (
        f"{what} needs {needed / 1e9:,.1f} GB of memory, but {free / 1e9:,.1f} GB are free; lower --batch_size or "
        "--data.image_size in another --workdir, or compute it in parts with --parallel.accumulate"
    )


def _free_here() -> int | None:
    """Returns what Linux could give to a process without swapping."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None


def _free_in_group() -> int | None:
    """Returns what the limits of the process's group leave, such as the limit of a container; None without a limit.

    The groups around it have limits, too: Slurm limits the job and not its tasks, systemd may limit all of a user.
    """
    try:
        group = CGROUPS / CGROUP.read_text().rpartition("0::/")[2].splitlines()[0]
    except (OSError, IndexError):
        return None
    around = [folder for folder in (group, *group.parents) if folder.is_relative_to(CGROUPS)]
    return min((free for folder in around if (free := _left_by(folder)) is not None), default=None)


def _left_by(group: Path) -> int | None:
    """Returns what the limit of one group leaves. Files that are kept in memory count as free: they make room."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None
