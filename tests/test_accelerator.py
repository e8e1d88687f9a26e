"""The benchmark for accelerators, small and on a CPU: it ends in one JSON object in which no part has failed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.accelerator import run_parts

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_part_works():
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.accelerator", "--smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert not [part for part in found.values() if isinstance(part, dict) and ("error" in part or "skipped" in part)]
    for name in ("tiny_imagenet_gpu", "imagenet", "imagenet_convnext"):
        step = found[f"steps {name}"]
        assert step["images_per_second"] > 0
        assert 0 <= step["input_stall"] < 1
        assert step["share_of_peak"] is None
    assert set(found["precision"]) == {"bfloat16", "float32"}
    assert min(found["flax"].values()) > 0
    assert found["training"]["pictures"] == 359


def fail():
    raise ValueError("no such kernel")


def test_a_part_that_fails_leaves_the_others():
    found = run_parts({"one": fail, "two": lambda: 2}, deadline=time.monotonic() + 60)
    assert found["one"] == {"error": "ValueError: no such kernel"}
    assert found["two"] == 2


def test_a_part_that_comes_too_late_is_left_out():
    found = run_parts({"one": lambda: 1}, deadline=time.monotonic() - 1)
    assert found["one"] == {"skipped": "no time left"}
