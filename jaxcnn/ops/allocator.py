"""How the process asks the system for memory."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # glibc's malloc.h
TOP_PAD_BYTES = 256 << 20


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed rather than give it back to the system; other libraries are left alone.

    XLA allocates the maps of each step anew. Given back and asked for again, every page is cleared and mapped each
    time, which takes a fifth of a training step on a CPU. The process stays at its largest size instead.

    Returns:
      Whether the settings were made.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES), (M_ARENA_MAX, 1))
    results = [mallopt(name, value) for name, value in settings]
    return all(results)
