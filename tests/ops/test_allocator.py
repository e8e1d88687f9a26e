"""Memory that glibc keeps, in a separate process, since it cannot be undone."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource, sys
from jaxcnn.ops.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    bytearray(64 << 20)
before = faults()
for _ in range(10):
    bytearray(64 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_without_page_faults():
    faults = {}
    for mode in ("keep", "give back"):
        command = [sys.executable, "-c", MEASURE, mode]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        faults[mode] = int(done.stdout)
    assert faults["keep"] * 10 < faults["give back"]
