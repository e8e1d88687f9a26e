"""Runs trainings as processes, one after the other or several at once."""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from jaxcnn.run.describe import counted
from jaxcnn.run.recorded import is_finished
from jaxcnn.run.workdir import LOCK, Workdir
from jaxcnn.terminal import console, stage

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
STARTER = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-m", "jaxcnn.train", *sys.argv[1:]])
"""
"""Starts a training that is stopped when the sweep is killed, on Linux; otherwise its workdir would stay locked."""


@dataclass(frozen=True)
class Job:
    """A training to run.

    Attributes:
      workdir: its folder.
      arguments: of `python -m jaxcnn.train`.
    """

    workdir: Path
    arguments: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The file of what it prints."""
        return self.workdir.with_name(f"{self.workdir.name}.log")

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, by its records; see `recorded.is_finished`."""
        return is_finished(Workdir(self.workdir))


def run_jobs(jobs: Sequence[Job], *, at_once: int) -> dict[Job, str]:
    """Runs all jobs that are not finished. An exception such as Ctrl-C stops the running ones, which save their state.

    Args:
      jobs: the trainings. Equal ones, such as of trials with the same values, are run once.
      at_once: how many run at the same time.

    Returns:
      The last line of what each failed job printed.
    """
    jobs = list(dict.fromkeys(jobs))
    waiting = [job for job in jobs if not job.is_finished]
    if len(waiting) < len(jobs):
        console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished")
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    failed: dict[Job, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                console.print(f"{job.workdir.name}: started", soft_wrap=True)
                running[job] = (_start(job), time.monotonic())
            time.sleep(POLL_SECONDS)
            for job, (process, started) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    if not job.is_finished:
                        failed[job] = _last_line(job) or f"ended with status {process.returncode}"
                    outcome = "failed" if job in failed else f"finished in {time.monotonic() - started:,.0f} s"
                    console.print(f"{job.workdir.name}: {outcome}; {len(waiting)} to come", soft_wrap=True)
    finally:
        _stop([process for process, _ in running.values()])
    return failed


def _start(job: Job) -> subprocess.Popen[bytes]:
    """Starts a training; what it prints goes to a file beside its workdir.

    A training that a killed sweep has left behind gets some time to save its state and end.
    """
    if (job.workdir / LOCK).exists():
        with (
            stage(f"{job.workdir.name}: waiting for its last session to end"),
            suppress(Timeout),
            FileLock(job.workdir / LOCK, timeout=GRACE_SECONDS),
        ):
            pass
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    with job.output.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 the command is of this package
            [sys.executable, "-c", STARTER, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A terminal sends Ctrl-C to its whole process group: a second signal would end the training unsaved.
            start_new_session=True,
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks processes to save their state and end, and waits for them."""
    for process in processes:
        process.terminate()
    with stage(f"waiting for {counted(len(processes), 'run')} to save and stop"):
        for process in processes:
            process.wait()


def _last_line(job: Job) -> str:
    lines = job.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
