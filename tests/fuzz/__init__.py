"""Fuzzing of everything that reads what others send or leave on a disk: `python -m tests.fuzz TARGET`."""
