"""Keeps the memory of the process at what it needs, where the C library is glibc."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def tighten() -> None:
    """Has freed memory go back to the system.

    Left alone, glibc keeps a heap for each thread, and raises the size from which a block is returned when it is freed
    up to 32 MB: after a few large photographs the process stays at its highest mark. Call it before other threads run.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_TRIM_THRESHOLD, 1 << 20)
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def trim() -> None:
    """Returns what is free now: after a model of 32 MB is loaded these are 70 MB."""
    if (malloc_trim := _function("malloc_trim")) is not None:
        malloc_trim(0)


def _function(name: str) -> "ctypes._NamedFuncPointer | None":
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError, TypeError):  # Another C library, or no way to ask for it.
        return None
