"""Several processes train one run as one process does: the same losses, one set of files, the same evaluation."""

import os
import random
import shutil
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
from pictures import write_class_folders

from jaxcnn.processes import LOST

RUN, DRILL, SLOW = pytest.mark.run, pytest.mark.drill, pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process: ten epochs, 220 steps."""
    workdir = tmp_path_factory.mktemp("one")
    train(1, workdir, *SMALL, "--epochs", "10")
    return workdir


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of one process: four epochs, 88 steps."""
    workdir = tmp_path_factory.mktemp("short")
    train(1, workdir, *SMALL, "--epochs", "4")
    return workdir


@pytest.mark.parametrize("count", [pytest.param(2, marks=RUN), pytest.param(4, marks=SLOW)])
def test_several_processes_learn_what_one_learns(one, tmp_path, count):
    first, *others = train(count, tmp_path, *SMALL, "--epochs", "10")
    check_same_run(tmp_path, one)
    assert f"resnet on {count} x cpu in {count} processes;" in first
    assert "epoch 10/10" in first
    assert not any("epoch" in output for output in others)


@pytest.mark.parametrize(("victim", "count_after"), [pytest.param(0, 1, marks=DRILL), pytest.param(1, 4, marks=SLOW)])
def test_a_killed_process_ends_all_and_another_number_of_them_resumes(short, tmp_path, victim, count_after):
    processes = launch(2, tmp_path, *SMALL, "--epochs", "4", "--parallel.fsdp", str(1 + victim))
    wait_for_step(processes, tmp_path, step=2 * STEPS_OF_AN_EPOCH)
    processes[victim].kill()
    killed = time.monotonic()
    ended = finish(processes, timeout=60)
    assert time.monotonic() - killed < ENDED_SECONDS
    assert ended[1 - victim][0] in (LOST, -signal.SIGABRT), ended
    train(count_after, tmp_path, *SMALL, "--epochs", "4")
    check_same_run(tmp_path, short)


@DRILL
def test_a_signal_to_one_process_saves_the_same_step_in_all(short, tmp_path):
    processes = launch(2, tmp_path, *SMALL, "--epochs", "4")
    wait_for_step(processes, tmp_path, step=STEPS_OF_AN_EPOCH)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes, timeout=60)
    assert [status for status, _ in ended] == [0, 0], ended
    assert "stopped by SIGTERM and saved at step" in ended[0][1]
    train(2, tmp_path, *SMALL, "--epochs", "4")
    check_same_run(tmp_path, short)


EVALUATING = """
import itertools, os, signal
import jax
from jaxcnn import cli, validation
from jaxcnn.train import main
evaluate, numbers = validation.eval_step, itertools.count(1)

def stop_at_second(*arguments, **options):
    # Six batches have all validation pictures: this is the second one after the second epoch.
    if next(numbers) == 8 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(*arguments, **options)

validation.eval_step = stop_at_second
cli.run(main, "train")
"""


@DRILL
def test_a_signal_to_one_process_stops_the_evaluation_in_all(short, tmp_path):
    ended = finish(launch(2, tmp_path, *SMALL, "--epochs", "4", program=["-c", EVALUATING]))
    assert [status for status, _ in ended] == [0, 0], ended
    assert f"stopped by SIGTERM and saved at step {2 * STEPS_OF_AN_EPOCH}; run again" in ended[0][1]
    assert [line["step"] for line in records(tmp_path, "validation")] == [STEPS_OF_AN_EPOCH]
    train(2, tmp_path, *SMALL, "--epochs", "4")
    check_same_run(tmp_path, short)


CANNOT_WRITE = """
import resource, sys
import jax
from jaxcnn import cli
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.train import main
save, victim, step = Checkpoints.save, *(int(sys.argv.pop(1)) for _ in range(2))

def save_with_full_disk(checkpoints, state, **options):
    if jax.process_index() == victim and int(state.step) == step:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # A write beyond fails as it does on a full disk.
    save(checkpoints, state, **options)

Checkpoints.save = save_with_full_disk
cli.run(main, "train")
"""


@DRILL
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_cannot_write_its_part_ends_all_and_they_resume(short, tmp_path, victim):
    step, options = 2 * STEPS_OF_AN_EPOCH, [*SMALL, "--epochs", "4", "--parallel.fsdp", "2"]
    processes = launch(2, tmp_path, *options, program=["-c", CANNOT_WRITE, str(victim), str(step)])
    wait_for_step(processes, tmp_path, step=step)
    ended = finish(processes, timeout=60)
    status, output = ended[victim]
    assert status == 2, ended
    assert f"train: the checkpoint of step {step} could not be written to {tmp_path}/checkpoints: File too" in output
    status, output = ended[1 - victim]
    assert status == LOST, ended
    line = f"python -m jaxcnn.train: process {victim} of this run has ended: the checkpoint of step {step} could not be"
    assert output.splitlines()[-1].startswith(line), ended
    train(2, tmp_path, *options)
    check_same_run(tmp_path, short)


FAILS = """
import sys
import jax
from jaxcnn import cli
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.train import main
save, victim, error = Checkpoints.save, int(sys.argv.pop(1)), sys.argv.pop(1)

def save_or_fail(checkpoints, state, **options):
    if jax.process_index() == victim:
        raise eval(error)
    save(checkpoints, state, **options)

Checkpoints.save = save_or_fail
cli.run(main, "train")
"""


@RUN
@pytest.mark.parametrize(
    ("victim", "error", "status", "reason"),
    [
        (0, "ModuleNotFoundError('no', name='jinja2')", 2, "the package jinja2 is not installed; run: pip install"),
        (1, "ValueError('a bug')", 1, "ValueError; its own output says more"),
    ],
)
def test_an_error_of_one_process_ends_all_with_a_line(tmp_path, victim, error, status, reason):
    ended = finish(launch(2, tmp_path, *SMALL, "--epochs", "1", program=["-c", FAILS, str(victim), error]), timeout=60)
    assert [ended[victim][0], ended[1 - victim][0]] == [status, LOST], ended
    line = f"python -m jaxcnn.train: process {victim} of this run has ended: {reason}"
    assert ended[1 - victim][1].splitlines()[-1].startswith(line), ended
    assert ("Traceback" in ended[victim][1]) == ("bug" in error), ended


CLOSES_SLOWLY = """
import contextlib, time
from jaxcnn import cli, training
from jaxcnn.train import main

@contextlib.contextmanager
def send(*_, writes):
    try:
        yield lambda record: None
    finally:
        time.sleep(6 if writes else 0)

training.open_tracking = send
cli.run(main, "train")
"""


@RUN
def test_a_run_that_diverges_is_refused_in_all_processes(tmp_path):
    """The first one ends later, since it sends to the trackers that the run has failed."""
    options = [*SMALL, "--epochs", "4"]
    options[options.index("--optim.learning_rate") + 1] = "1e30"
    ended = finish(launch(2, tmp_path, *options, program=["-c", CLOSES_SLOWLY]))
    assert [status for status, _ in ended] == [2, 2], ended
    assert "training diverged: in step" in ended[0][1]


@RUN
def test_what_the_leader_refuses_ends_all(short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    ended = finish(launch(2, tmp_path / "run", *SMALL, "--epochs", "4", "--batch_size", "32"))
    assert [status for status, _ in ended] == [2, 2], ended
    assert "batch_size 64, not 32" in ended[0][1]


@RUN
def test_processes_that_were_started_with_other_settings_are_refused(tmp_path):
    own = [["--epochs", "4"], ["--epochs", "5"]]
    ended = finish(launch(2, tmp_path, *SMALL, own=own))
    assert [status for status, _ in ended] == [2, 2], ended
    for _, output in ended:
        assert "process 1 was started with epochs 5, process 0 with 4; give the same options to all" in output


@RUN
def test_processes_with_other_pictures_are_refused(tmp_path):
    sources = [write_class_folders(tmp_path / name, count=20) for name in ("here", "there")]
    (sources[1] / "dog" / "7.png").unlink()
    own = [["--data.source", str(source), "--data.cache_dir", str(source) + "-cache"] for source in sources]
    ended = finish(launch(2, tmp_path / "run", *SMALL, own=own))
    assert [status for status, _ in ended] == [2, 2], ended
    assert "process 1 has other pictures than process 0; " in ended[0][1]
    assert "here has to hold the same pictures on all machines" in ended[0][1]


@RUN
def test_a_dry_run_of_several_processes_is_one(tmp_path):
    ended = finish(launch(2, tmp_path / "run", *SMALL, "--dry_run", "--data.cache_dir", str(tmp_path / "cache")))
    assert [status for status, _ in ended] == [0, 0], ended
    (_, first), (_, other) = ended
    assert "resnet on 2 x cpu in 2 processes;" in first
    assert first.count("for all steps, evaluation not counted") == 1
    assert "steps" not in other
    assert not (tmp_path / "run").exists()


@RUN
def test_a_range_test_of_several_processes_is_one(tmp_path):
    options = [*SMALL, "--find_learning_rate", "60", "--data.cache_dir", str(tmp_path / "cache")]
    ended = finish(launch(2, tmp_path / "rates", *options, program=["-m", "jaxcnn.sweep"]))
    assert [status for status, _ in ended] == [0, 0], ended
    assert ["the loss falls fastest" in output for _, output in ended] == [True, False]
    assert [path.name for path in (tmp_path / "rates").iterdir()] == ["learning_rates.html"]


SENDING = """
import contextlib, time
import jax
from jaxcnn import cli, training
from jaxcnn.train import main
initialize = jax.distributed.initialize
jax.distributed.initialize = lambda **options: initialize(**options | {"shutdown_timeout_seconds": 1})

@contextlib.contextmanager
def send(*_, writes):
    yield lambda record: None
    time.sleep(4 if writes else 0)

training.open_tracking = send
cli.run(main, "train")
"""


@DRILL
def test_processes_wait_for_what_the_first_sends_at_the_end(tmp_path):
    ended = finish(launch(2, tmp_path, *SMALL, "--epochs", "1", program=["-c", SENDING]))
    assert [status for status, _ in ended] == [0, 0], ended


def slurm(process, count, port):
    """The environment of a task that `srun` starts."""
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    }


@RUN
def test_tasks_of_slurm_find_each_other(tmp_path):
    job = random.Random(os.getpid()).randrange(4096)
    environments = [slurm(process, 2, job) for process in range(2)]
    first, _ = train(2, tmp_path, *SMALL, "--epochs", "1", environments=environments)
    assert "resnet on 2 x cpu in 2 processes;" in first
    assert len(records(tmp_path, "validation")) == 1
