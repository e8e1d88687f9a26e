"""Random processes of a run are killed at random times."""

import random
import time
from collections import Counter

import pytest
from launch import ENDED_SECONDS, SMALL, check_same_run, finish, launch, train


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_random_kills_of_twenty_end_soon_and_resume(tmp_path):
    one = tmp_path / "one"
    train(1, one, *SMALL, "--epochs", "5")
    generator, seconds, statuses = random.Random(0), [], []
    for number in range(20):
        workdir, count = tmp_path / str(number), generator.choice([2, 2, 4])
        processes = launch(count, workdir, *SMALL, "--epochs", "5")
        time.sleep(generator.uniform(2, 30))
        victim = processes.pop(generator.randrange(count))
        victim.kill()
        killed = time.monotonic()
        ended = finish(processes, timeout=60)
        seconds.append(time.monotonic() - killed)
        statuses += [status for status, _ in ended]
        assert seconds[-1] < ENDED_SECONDS, ended
        finish([victim])
        train(generator.choice([1, 2]), workdir, *SMALL, "--epochs", "5")
        check_same_run(workdir, one)
    print(f"ended within {max(seconds):.1f} s, all of {len(seconds)}; {Counter(statuses)}")
