"""Random processes of a run are killed at random times, from the first moment that all have joined to the export."""

import random
import signal
import time

import pytest
from launch import (
    ENDED_SECONDS,
    SMALL,
    STEPS_OF_AN_EPOCH,
    check_same_run,
    finish,
    launch,
    records,
    train,
    wait_for_step,
)

from jaxcnn.processes import LOST

KILLS, EPOCHS = 20, 5
OPTIONS = (*SMALL, "--epochs", str(EPOCHS))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run that nobody kills."""
    workdir = tmp_path_factory.mktemp("one")
    train(1, workdir, *OPTIONS)
    return workdir


def wait_for_lock(processes, workdir):
    """Waits until the leader has locked the workdir, which it does when all processes have joined."""
    while not (workdir / ".lock").exists():
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(KILLS))
def test_processes_end_soon_after_one_is_killed_and_resume_to_the_same_result(one, tmp_path, number):
    generator = random.Random(number)
    count = generator.choice([2, 2, 4])
    processes = launch(count, tmp_path, *OPTIONS)
    # While they load, compile and take the first steps; or after an epoch, the last of which the export follows.
    epoch = generator.randrange(EPOCHS + 1)
    wait_for_lock(processes, tmp_path)
    if epoch:
        wait_for_step(processes, tmp_path, step=epoch * STEPS_OF_AN_EPOCH)
    time.sleep(generator.uniform(0, 1 if epoch else 10))
    victim = processes.pop(generator.randrange(count))
    assert victim.poll() is None
    victim.kill()
    killed = time.monotonic()
    ended = finish(processes, timeout=60)
    seconds = time.monotonic() - killed
    assert seconds < ENDED_SECONDS, ended
    # The leader may end the export of a whole run before it notices.
    assert {status for status, _ in ended} <= {LOST, -signal.SIGABRT, *([0] if epoch == EPOCHS else [])}, ended
    finish([victim])
    log = records(tmp_path, "train") if (tmp_path / "metrics.jsonl").exists() else []
    reached = max((line["step"] for line in log), default=0)
    train(generator.choice([1, 2]), tmp_path, *OPTIONS)
    check_same_run(tmp_path, one)
    print(f"kill {number}: {count} processes, step {reached}, ended within {seconds:.1f} s, {[s for s, _ in ended]}")
