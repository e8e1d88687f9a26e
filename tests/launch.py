"""Starts `python -m jaxcnn.train` as several processes that compute one run on the CPU."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from ports import free_port

ROOT = Path(__file__).parent.parent
SMALL = (
    "--data.image_size 8 --model.widths 8 16 --model.blocks 1 1 --model.no_cpu_kernels --augment.pad_crop .1 "
    "--augment.mixup .5 --optim.learning_rate .002 --optim.ema_decay .9 --batch_size 64"
).split()
"""Options of a small run, at a rate at which rounding is not amplified: 22 steps in an epoch."""
STEPS_OF_AN_EPOCH = 22
"""Batches of 64 among the 1,438 training pictures of the digits."""
ENDED_SECONDS = 15
"""Time in which all processes end after one of them."""


def launch(
    count,
    workdir,
    *options,
    host="127.0.0.1",
    prefixes: Sequence[Sequence[str]] = (),
    environments=(),
    own=(),
    program=("-m", "jaxcnn.train"),
):
    """Starts the processes of a run; one alone without the options that join several.

    Args:
      count: number of processes.
      workdir: folder of the run.
      options: options of the training.
      host: address of the first process.
      prefixes: for each process, a command that starts it.
      environments: for each process, variables of its environment; they replace the options that join several.
      own: for each process, further options.
      program: what Python runs.
    """
    address, started = f"{host}:{free_port()}", []
    for process in range(count):
        command = [sys.executable, *program, "--workdir", str(workdir), *options]
        if count > 1 and not environments:
            command += ["--parallel.coordinator", address, "--parallel.num_processes", str(count)]
            command += ["--parallel.process_id", str(process)]
        prefix = prefixes[process] if prefixes else ()
        command += own[process] if own else ()
        variables = environments[process] if environments else {}
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        started.append(
            subprocess.Popen(
                [*prefix, *command],
                cwd=ROOT,
                env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"} | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(processes, *, timeout=240):
    """Waits for processes; returns the exit status and the output of each."""
    return [(process.communicate(timeout=timeout)[0], process.returncode)[::-1] for process in processes]


def train(count, workdir, *options, **how):
    """Trains to the end; returns the output of each process."""
    ended = finish(launch(count, workdir, *options, **how))
    assert [status for status, _ in ended] == [0] * count, "\n".join(output for _, output in ended)
    return [output for _, output in ended]


def records(workdir, kind):
    """Returns the records of a kind in the log of a run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines() if line]
    return [line for line in lines if line["kind"] == kind]


def wait_for_step(processes, workdir, *, step):
    """Waits until the processes of a run have evaluated the epoch that ends with a step."""
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() or not any(
        line["step"] >= step for line in records(workdir, "validation")
    ):
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def files(workdir):
    """Returns the names in a workdir; the time and the host in the names of event files are left out.

    A run that was resumed by another command also has `earlier_sessions.json`.
    """
    return {path.name.partition(".out.")[0] for path in workdir.iterdir()} - {"earlier_sessions.json"}


def check_same_run(workdir, expected):
    """Compares two finished runs: their files, their losses after every epoch, and their evaluations."""
    assert files(workdir) == files(expected)
    # What was evaluated, but not saved yet when a process was killed, is evaluated again.
    found, wanted = (
        {line["step"]: line["loss"] for line in records(path, "validation")} for path in (workdir, expected)
    )
    assert found == pytest.approx(wanted, abs=1e-5)
    found, wanted = (json.loads((path / "evaluation.json").read_text()) for path in (workdir, expected))
    for name in ("count", "top1", "top5", "step", "confusion"):
        assert found[name] == wanted[name], name
    assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
