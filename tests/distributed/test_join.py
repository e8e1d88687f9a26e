"""Joining several processes: by hand, or as a launcher has started them; never N runs beside each other."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import jax
import pytest
from launch import ROOT
from ports import free_port

from jaxcnn.config import ParallelConfig
from jaxcnn.errors import TemporaryError, UserError
from jaxcnn.processes import (
    LOST,
    MissingProcessError,
    Wishes,
    ending_together,
    is_leader,
    join,
    lead,
    leader_first,
    propose,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "host"}, "parallel.coordinator is 'host'; it must be HOST:PORT"),
        ({"coordinator": ":80"}, "parallel.coordinator"),
        ({"coordinator": "host:80"}, "parallel.num_processes is None; it must be given"),
        ({"coordinator": "host:80", "num_processes": 2}, "parallel.process_id is None"),
        ({"num_processes": 2}, "parallel.num_processes is 2; it must be left out without parallel.coordinator"),
        ({"process_id": 0}, "parallel.process_id"),
        ({"coordinator": "auto", "process_id": 0}, "parallel.process_id"),
        ({"coordinator": "host:80", "num_processes": 2, "process_id": 2}, "from 0 to 1"),
        ({"fsdp": 0}, "parallel.fsdp"),
        ({"accumulate": 0}, "parallel.accumulate"),
        ({"start_seconds": 0}, "parallel.start_seconds"),
        ({"start_seconds": 10**10}, "parallel.start_seconds is 10000000000; it must be from 1 to 604800"),
    ],
)
def test_an_address_is_complete_or_absent(settings, message):
    with pytest.raises(UserError, match=message):
        ParallelConfig(**settings)


def test_the_address_is_not_recorded():
    config = ParallelConfig(coordinator="host:80", num_processes=2, process_id=1, fsdp=2, start_seconds=9)
    assert config.joined() == ParallelConfig(fsdp=2)


def test_one_process_decides_alone():
    assert is_leader()
    assert (lead(lambda: 3), leader_first(lambda: 4)) == (3, 4)
    assert propose(lambda: Wishes(stop=15, save=True, log=False))() == Wishes(stop=15, save=True, log=False)


@pytest.mark.parametrize(
    "environment",
    [
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_SIZE": "4", "PMI_RANK": "1"},
        {"WORLD_SIZE": "4", "RANK": "1"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "a"},
        {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a"},
    ],
)
def test_a_task_that_cannot_join_the_others_is_refused(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"which started 4, cannot join the others \(.*--parallel.coordinator HOST:PORT"
    ):
        join(ParallelConfig())


def test_a_batch_script_of_slurm_is_no_task(monkeypatch):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    join(ParallelConfig())


def test_a_wrong_option_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "jaxcnn.train", "--parallel.coordinator", "host:80"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "parallel.num_processes is None; it must be given" in line


def test_a_pod_of_an_indexed_job_that_cannot_join_the_others_is_refused(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(UserError, match="this task of Kubernetes cannot join the others"):
        join(ParallelConfig())


def start(code, *arguments):
    """Starts Python code as a process on CPUs, whose output is read."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WAITING = """
import sys
from jaxcnn.config import ParallelConfig
from jaxcnn.processes import ending_together, join
address, number, seconds = sys.argv[1], *map(int, sys.argv[2:])
print(flush=True)
with ending_together("train"):
    join(ParallelConfig(coordinator=address, num_processes=4, process_id=number, start_seconds=seconds))
"""


@pytest.mark.run
def test_processes_do_not_wait_long_for_one_that_is_missing():
    """The last of four never starts; another one is interrupted while it waits."""
    address = f"127.0.0.1:{free_port()}"
    started = [start(WAITING, address, str(number), "100" if number == 2 else "3") for number in range(3)]
    ready = [process.stdout.readline() for process in started]
    begin = time.monotonic()
    time.sleep(1)
    started[2].send_signal(signal.SIGINT)
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert time.monotonic() - begin < 15
    assert ready == ["\n"] * 3
    for errors, status in ended[:2]:
        assert status == LOST, errors
        assert "train: the processes of this run have not all started within 3 s; start all of them again" in errors
        assert "Traceback" not in errors
    assert ended[2] == ("train: interrupted\n", 130)


def during(first, error):
    """An error that is raised while another one is handled."""
    error.__context__ = first
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), LOST),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), LOST),
        (during(jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), AssertionError("closing failed")), LOST),
        (TimeoutError("ChainedFuture completed 2/6 futures but timed out after 9.82 seconds."), LOST),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), 1),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1),
        (UserError("epochs is 0"), 2),
        (TemporaryError("the bucket does not answer; start all of them again to resume"), LOST),
        (MissingProcessError("the processes have not all started; start all of them again to resume"), LOST),
        (ValueError("a bug"), 1),
        (ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"), 2),
        (ModuleNotFoundError("No module named 'jaxcnn.absent'", name="jaxcnn.absent"), 1),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (during(jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no value yet"), SystemExit(143)), 143),
    ],
)
def test_the_exit_status_says_what_to_do(monkeypatch, capsys, error, status):
    ends = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", ends.append)
    with ending_together("train"):
        raise error
    assert ends == [status]
    assert ("start all of them again to resume" in capsys.readouterr().err) == (status == LOST)


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "No space left on device: 'a'; make room and run the"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nof 7 bytes"), "out of memory); lower it"),
        (ModuleNotFoundError("No module named 'jinja2'", name="jinja2"), "jinja2 is not installed; run: pip install"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), ""),
    ],
)
def test_an_error_of_the_system_is_one_line_as_in_a_single_process(monkeypatch, capsys, error, lines):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", lambda _: None)
    with ending_together("train", memory="lower it"):
        raise error
    printed = capsys.readouterr().err
    assert lines in printed
    assert printed.count("\n") == bool(lines)


def test_a_message_that_cannot_be_printed_changes_no_exit_status(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def flush(self):
            self.write("")

    ends = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(sys, "stderr", Closed())
    with ending_together("train"):
        raise UserError("epochs is 0")
    assert ends == [2]


LOCKING = """
import sys
from pathlib import Path
from jaxcnn import disk
from jaxcnn.config import ParallelConfig
from jaxcnn.processes import ending_together, join
from jaxcnn.run.shared_workdir import locked_by_leader
from jaxcnn.run.workdir import Workdir
disk.SHOWN_SECONDS = 0.5
address, number, *folders = sys.argv[1:]
with ending_together("train"):
    join(ParallelConfig(coordinator=address, num_processes=2, process_id=int(number)))
    for folder in folders:
        with locked_by_leader(Workdir(Path(folder))):
            print("locked", flush=True)
"""


@pytest.mark.run
def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
    """Both processes see the first folder; the second is on a disk of each."""
    address, shared = f"127.0.0.1:{free_port()}", str(tmp_path / "shared")
    started = [start(LOCKING, address, str(number), shared, str(tmp_path / f"disk{number}")) for number in range(2)]
    for number, process in enumerate(started):
        printed, errors = process.communicate(timeout=120)
        assert (printed, process.returncode) == ("locked\n", 2), errors
        line = f"process 1 does not see the workdir {tmp_path}/disk{number} of process 0; give a --workdir on a disk"
        assert line in errors
    assert list(tmp_path.iterdir()) == []
