"""The cores that this process may use."""

import os


def count_cores() -> int:
    """Returns their number. Only Linux says which ones they are; elsewhere, all of the machine count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
