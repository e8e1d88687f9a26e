"""Sends what a run records to MLflow or Weights & Biases, without ever stopping or delaying the training."""

import importlib.util
import json
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from jaxcnn.config import Config, LogConfig
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.extras import install_command
from jaxcnn.run.flat_settings import flat_settings
from jaxcnn.run.metrics_log import Record, tagged
from jaxcnn.run.recorded import is_finished
from jaxcnn.run.trackers import LoggedRun, MLflow, Outcome, Tracker, WeightsAndBiases
from jaxcnn.run.workdir import Workdir
from jaxcnn.terminal import stage, warn

TRACKERS: Mapping[str, Callable[[str], Tracker]] = {"mlflow": MLflow, "wandb": WeightsAndBiases}
"""Makes the client of a package from the value of its option, by the name of the package."""
SCORES = ("top1", "top5", "loss", "ece")
"""Metrics of `evaluation.json` that are sent."""

ATTEMPTS = 3
"""How often a record is sent to a server that does not take it."""
RETRY_SECONDS = 30.0
"""Time between two attempts."""
END_SECONDS: Mapping[Outcome, float] = {"finished": 300.0, "stopped": 20.0, "failed": 20.0}
"""Longest wait for a server at the end of a session, which sends the model if the run is complete."""
FAILING_SECONDS = 10.0
"""Longest wait at the end for a server that did not take the last record."""


def check_clients(config: LogConfig) -> None:
    """Raises a `UserError` if the package of a tracker that the settings ask for is not installed."""
    for package in TRACKERS:
        if getattr(config, package) is None:
            continue
        found = importlib.util.find_spec(package)
        # A folder of this name without code, such as one with logs in the working directory, has no origin.
        if found is None or found.origin is None:
            raise UserError(
                f"log.{package} needs the package {package}, which is not installed; run: {install_command(package)}"
            )


@contextmanager
def open_tracking(
    log: LogConfig, workdir: Workdir, config: Config, *, writes: bool
) -> Iterator[Callable[[Record], None]]:
    """Sends a run to the trackers that are asked for until the context ends.

    At the end, the scores, the model and the report are sent if the run is finished, see `recorded.is_finished`: during
    a training, the user may measure and export its best checkpoint, too.

    Args:
      log: the trackers.
      workdir: the run's folder, which keeps the id that a resumed run is found by.
      config: the settings of the run.
      writes: False: another process sends, and this one does not.

    Yields:
      A function that takes the records of the run. It returns at once.
    """
    asked = {name: getattr(log, name) for name in TRACKERS if writes and getattr(log, name) is not None}
    senders = list[Sender]()
    if asked:
        run = LoggedRun(
            id=_read_id(workdir.path / "tracking.json"),
            folder=workdir.path.absolute(),
            note=workdir.read_note(),
            settings=dict(flat_settings(config)),
        )
        senders = [Sender(name, TRACKERS[name](value), run) for name, value in asked.items()]
    outcome: Outcome = "failed"

    def note(record: Record) -> None:
        if values := tagged(record):
            for sender in senders:
                sender.send(partial(sender.tracker.write, values, step=record.step, time=record.time))

    try:
        yield note
        outcome = "finished" if senders and is_finished(workdir) else "stopped"
    finally:
        for sender in senders:
            if outcome == "finished":
                _send_results(sender, workdir)
            sender.close(outcome)


def _read_id(path: Path) -> str:
    """Reads the id of a run, or makes one and writes it down."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(path.read_text(encoding="utf-8"))["id"]
        if re.fullmatch("[0-9a-f]{32}", found):
            return str(found)
    made = uuid.uuid4().hex
    write_atomically(path, json.dumps({"id": made}) + "\n")
    return made


def _send_results(sender: "Sender", workdir: Workdir) -> None:
    found = json.loads(workdir.evaluation.read_text(encoding="utf-8"))
    scores = {f"final/{name}": found[name] for name in SCORES}
    sender.send(partial(sender.tracker.write, scores, step=found["step"], time=time.time()))
    sender.send(partial(sender.tracker.write_files, model=workdir.onnx, report=workdir.path / "report.html"))


class Sender:
    """A thread that makes the calls of a tracker in their order. A server that is slow or gone delays nothing.

    What fails is tried again some times. The first error is printed, and nothing more of it.

    Attributes:
      tracker: the client.
    """

    def __init__(self, name: str, tracker: Tracker, run: LoggedRun):
        self.tracker = tracker
        self._name, self._run = name, run
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._is_started = self._is_failing = self._has_warned = False
        self._thread = threading.Thread(target=self._work, name=f"log.{name}", daemon=True)
        self._thread.start()
        self.send(lambda: None)  # The run is created at once.

    def send(self, call: Callable[[], None]) -> None:
        """Makes a call of the tracker later."""
        self._calls.put(call)

    def close(self, outcome: Outcome) -> None:
        """Ends the run in the tracker, and waits some time for the calls that are left."""
        self.send(partial(self.tracker.end, outcome))
        self._calls.put(None)
        self._ending.set()
        with stage(f"sending the rest of the run to log.{self._name}"):
            self._thread.join(FAILING_SECONDS if self._is_failing else END_SECONDS[outcome])
        if self._thread.is_alive():
            self._warn("it takes too long to answer")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            for _ in range(ATTEMPTS):
                is_last = self._ending.is_set()
                if self._succeeds(call) or is_last:
                    break
                self._ending.wait(RETRY_SECONDS)

    def _succeeds(self, call: Callable[[], None]) -> bool:
        try:
            if not self._is_started:
                self.tracker.start(self._run)
                self._is_started = True
            call()
        except Exception as error:  # Whatever is wrong with a client or its server, the training goes on.
            self._is_failing = True
            self._warn(next(iter(str(error).splitlines()), type(error).__name__))
            return False
        self._is_failing = False
        return True

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(f"log.{self._name} does not get all of this run: {reason}; the run goes on without it")
