"""Faults of the disk under everything that writes or reads files: `python -m tests.faults`.

`operations.c`, preloaded, stands below Python and all libraries in C++, and costs no process for a fault: thousands of
them run in one.
"""
