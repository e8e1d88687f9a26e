"""How the process asks the operating system for memory."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Options of glibc's `mallopt`, from malloc.h."""
TOP_PAD_BYTES = 256 << 20
"""By how much the heap grows at a time."""


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation instead of returning it to the operating system.

    XLA allocates the maps of each step anew. If their pages went back and were requested again, the kernel would clear
    and map every page each time, which takes a fifth of a training step on a CPU. The price is that the process stays
    at its largest size. This cannot be undone.

    Returns:
      Whether it worked: False with another C library than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES), (M_ARENA_MAX, 1))
    # A list, so that every setting is made even if one fails.
    results = [mallopt(name, value) for name, value in settings]
    return all(results)
