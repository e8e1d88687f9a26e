"""Faults of single file operations, each from a seed that repeats it exactly."""

import ctypes
import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

READ, WRITE, CREATE, REMOVE = 1, 2, 4, 8
"""Kinds of operations, as in `operations.c`."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
      number: the operation that fails, counted from 1; 0: none.
      choice: selects the error, or the bit.
      lasts: whether all later operations of its kind fail too, as on a disk that stays full.
      half: whether half of a write is done before it fails.
      flips: whether a read gives data with a flipped bit, instead of an error.
    """

    number: int = 0
    choice: int = 0
    lasts: bool = False
    half: bool = False
    flips: bool = False

    @classmethod
    def of(cls, seed: int, *, operations: int, flips: bool) -> "Fault":
        """Returns the fault of a seed: an operation fails, by an error and in a manner that are drawn.

        As many seeds as there are operations reach each of them once; fewer are spread over all of them.
        """
        random, operations = np.random.default_rng(seed), max(operations, 1)
        number, lasts, half = 1 + seed * _stride(operations) % operations, random.random() < 0.5, random.random() < 0.5
        return cls(number, int(random.integers(2**31)), lasts, half, flips)


def _stride(operations: int) -> int:
    """Returns a step that leads to all operations, in few steps to such as are far apart: by the golden ratio."""
    return next(step for step in itertools.count(round(0.618 * operations) or 1) if math.gcd(step, operations) == 1)


class Injector:
    """The preloaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.faults_disarm.restype = ctypes.c_long
        self._library.faults_happened.restype = ctypes.c_char_p
        self.operations = 0

    @contextmanager
    def inject(self, folder: Path, fault: Fault) -> Iterator[None]:
        """Lets an operation on the files of a folder fail until the context ends, and counts the operations."""
        kinds = READ if fault.flips else READ | WRITE | CREATE | REMOVE
        how = (ctypes.c_uint(fault.choice), int(fault.lasts), int(fault.half), int(fault.flips))
        self._library.faults_arm(os.fsencode(folder), kinds, ctypes.c_long(fault.number), *how)
        try:
            yield
        finally:
            self.operations = self._library.faults_disarm()

    @property
    def happened(self) -> str:
        """The operation that failed, and how; empty if it did not come."""
        return str(self._library.faults_happened().decode(errors="replace"))


def can_inject() -> bool:
    """Returns whether faults can be injected here, which takes Linux and a C compiler."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def build(folder: Path) -> Path:
    """Compiles the library into a folder."""
    library = folder / "operations.so"
    source = Path(__file__).with_name("operations.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library
