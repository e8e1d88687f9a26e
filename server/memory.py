"""Keeps the process's memory close to what it needs, where the C library is glibc."""

import ctypes

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def tighten() -> None:
    """Makes glibc return freed memory to the system. Call it before other threads start.

    By default glibc keeps a heap for each thread, and raises the size from which a freed block is returned, up to
    32 MB: after a few large photographs the process would stay at its peak.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_TRIM_THRESHOLD, 1 << 20)
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def trim() -> None:
    """Returns free memory to the system now: 70 MB after loading a model of 32 MB."""
    if (malloc_trim := _function("malloc_trim")) is not None:
        malloc_trim(0)


def _function(name: str) -> "ctypes._NamedFuncPointer | None":
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError, TypeError):
        # Another C library, or a system where it cannot be opened.
        return None
