"""The disk fails under every target: errors are one line, files are whole, and a second try ends as if undisturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults.injection import Fault, can_inject
from tests.faults.targets import TARGETS

ROOT = Path(__file__).parents[2]
SCHEDULES = int(os.environ.get("JAXCNN_SCHEDULES", "60"))

pytestmark = pytest.mark.skipif(not can_inject(), reason="faults take Linux and a C compiler")


def run_schedules(*targets: str, schedules: int) -> None:
    command = [sys.executable, "-m", "tests.faults", *targets, "--schedules", str(schedules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(counts["target"], counts["failures"]) for counts in found] == [(target, 0) for target in targets]
    assert all(counts["operations"] > 0 for counts in found), found
    assert all(counts["missed"] <= counts["schedules"] // 10 for counts in found), found


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@pytest.mark.parametrize("target", ["predict-csv"])
def test_every_fault_of_the_disk_is_survived(target):
    run_schedules(target, schedules=min(SCHEDULES, 30))


@pytest.mark.drill
@pytest.mark.parametrize("target", TARGETS)
def test_faults_of_every_operation_are_survived(target):
    if target == "predict-parquet":
        pytest.importorskip("pyarrow")
    if target.startswith("encoded"):
        pytest.importorskip("array_record")
    run_schedules(target, schedules=SCHEDULES)


def test_the_same_seed_is_the_same_fault():
    faults = [[Fault.of(seed, operations=7, flips=False) for seed in range(50)] for _ in range(2)]
    assert faults[0] == faults[1]
    assert {fault.number for fault in faults[0][:7]} == set(range(1, 8))


@pytest.mark.parametrize("operations", [1, 2, 28, 950, 1000])
def test_few_schedules_reach_operations_from_the_first_to_the_last(operations):
    numbers = sorted(Fault.of(seed, operations=operations, flips=False).number for seed in range(60))
    gaps = np.diff([0, *numbers, operations + 1])
    assert 1 <= numbers[0] <= numbers[-1] <= operations
    assert gaps.max() <= max(1, operations / 20)
