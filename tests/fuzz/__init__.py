"""Fuzzing of everything that reads what others send or leave on a disk: `python -m tests.fuzz TARGET`."""

from pathlib import Path

FOLDER = Path(__file__).parent / "corpora"
"""The inputs that fuzzing starts from, a folder for each target."""
