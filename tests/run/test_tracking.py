"""What is sent to a tracker, and that one that fails or hangs stops nothing. The trackers here are played."""

import importlib.util
import json
import sys
import threading
import time
from functools import partial

import pytest
from log_lines import train_record, validation_record
from recorded_runs import CONFIG, write_run

from jaxcnn.config import LogConfig
from jaxcnn.errors import UserError
from jaxcnn.extras import install_command
from jaxcnn.run import tracking
from jaxcnn.run.metrics_log import StartRecord
from jaxcnn.run.tracking import check_clients, open_tracking
from jaxcnn.run.workdir import Workdir
from jaxcnn.train import main as train_command

LOG = LogConfig(mlflow="http://127.0.0.1:1")


class Played:
    """Keeps its calls; the first `failures` of them raise an error, and all wait for `gate`."""

    def __init__(self, failures=0):
        self.calls, self.runs, self.failures, self.gate = [], [], failures, threading.Event()
        self.gate.set()

    def _take(self, *call):
        self.gate.wait(60)
        if self.failures:
            self.failures -= 1
            raise OSError("no route to \x1b[31mhost\nand more")
        self.calls.append(call)

    def start(self, run):
        self.runs.append(run)
        self._take("start")

    def write(self, values, *, step, time):
        self._take("write", step, dict(values))

    def write_files(self, *, model, report):
        self._take("files", model.name, report.name)

    def end(self, outcome):
        self._take("end", outcome)


@pytest.fixture
def play(monkeypatch):
    """Puts a played tracker in the place of MLflow's client; it may be changed between two sessions."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    played = []
    monkeypatch.setattr(tracking, "TRACKERS", {"mlflow": lambda uri: played[-1]})

    def set_tracker(tracker):
        played.append(tracker)
        return tracker

    return set_tracker


def end_run(workdir):
    """Does what `conclude` leaves, as far as a tracker gets it."""
    found = {"top1": 0.75, "top5": 1.0, "loss": 0.5, "ece": 0.25, "step": 8, "count": 16}
    workdir.evaluation.write_text(json.dumps(found))
    workdir.onnx.write_bytes(b"model")
    workdir.onnx.with_suffix(".json").write_text(json.dumps({"step": 8}))


def test_a_run_is_sent_in_its_order(tmp_path, play):
    tracker, workdir = play(Played()), Workdir(write_run(tmp_path / "pets", note="second try", finished=False))
    with open_tracking(LOG, workdir, CONFIG, writes=True) as note:
        note(StartRecord(step=0, epoch=0.0))
        note(train_record(4, loss=2.5))
        note(validation_record(8, top1=0.5))
        end_run(workdir)
    assert [call[:2] for call in tracker.calls] == [
        ("start",), ("write", 4), ("write", 8), ("write", 8), ("files", "model.onnx"), ("end", "finished"),
    ]  # fmt: skip
    assert tracker.calls[1][2]["train/loss"] == 2.5
    assert tracker.calls[2][2] == {
        "validation/loss": 1.0,
        "validation/top1": 0.5,
        "validation/top5": 1.0,
        "validation/ece": 0.1,
    }
    assert tracker.calls[3][2] == {"final/top1": 0.75, "final/top5": 1.0, "final/loss": 0.5, "final/ece": 0.25}
    (run,) = tracker.runs
    assert (run.folder, run.note) == (tmp_path / "pets", "second try")
    assert run.settings["optim.learning_rate"] == 0.1


def test_a_resumed_run_has_the_same_id_and_another_run_another(tmp_path, play):
    ids = []
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        tracker = play(Played())
        with open_tracking(LOG, Workdir(tmp_path / name), CONFIG, writes=True):
            pass
        ids.append(tracker.runs[0].id)
        assert tracker.calls[-1] == ("end", "stopped")
    assert ids[0] == ids[1] != ids[2]
    (tmp_path / "b" / "tracking.json").write_text('{"id": "\' or 1"}')
    with open_tracking(LOG, Workdir(tmp_path / "b"), CONFIG, writes=True):
        pass
    assert tracker.runs[-1].id != ids[2]


def test_a_run_whose_best_checkpoint_was_measured_and_exported_meanwhile_is_not_finished(tmp_path, play):
    # It was stopped after two of three epochs.
    tracker, workdir = play(Played()), Workdir(write_run(tmp_path / "pets", finished=False, epochs=3))
    with open_tracking(LOG, workdir, CONFIG, writes=True):
        end_run(workdir)
    assert tracker.calls == [("start",), ("end", "stopped")]


def test_an_error_of_the_training_is_passed_on_and_recorded(tmp_path, play):
    tracker = play(Played())
    with pytest.raises(UserError, match="diverged"), open_tracking(LOG, Workdir(tmp_path), CONFIG, writes=True):
        raise UserError("training diverged")
    assert tracker.calls[-1] == ("end", "failed")


def test_other_processes_and_runs_without_a_tracker_send_nothing(tmp_path, play):
    tracker = play(Played())
    for log, writes in ((LOG, False), (LogConfig(), True)):
        with open_tracking(log, Workdir(tmp_path), CONFIG, writes=writes) as note:
            note(train_record(4))
    assert tracker.runs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failures", [1, 2])
def test_a_server_that_comes_back_gets_everything(tmp_path, play, capsys, failures):
    tracker = play(Played(failures))
    with open_tracking(LOG, Workdir(tmp_path), CONFIG, writes=True) as note:
        for step in range(1, 4):
            note(train_record(step))
        time.sleep(0.5)
    assert [call[1] for call in tracker.calls if call[0] == "write"] == [1, 2, 3]
    assert tracker.calls[-1] == ("end", "stopped")
    said = capsys.readouterr().err
    reason = "no route to \N{REPLACEMENT CHARACTER}[31mhost"
    assert said == f"warning: log.mlflow does not get all of this run: {reason}; the run goes on without it\n"


def test_a_server_that_is_gone_is_said_once_and_stops_nothing(tmp_path, play, capsys):
    tracker = play(Played(10**6))
    started = time.monotonic()
    with open_tracking(LOG, Workdir(tmp_path), CONFIG, writes=True) as note:
        for step in range(1, 100):
            note(train_record(step))
    assert time.monotonic() - started < 5
    assert tracker.calls == []
    assert capsys.readouterr().err.count("warning: log.mlflow does not get all of this run") == 1


WAITING = {"acquire", "join", "wait", "sleep", "get", "select", "poll", "connect", "recv", "recv_into", "send"}
"""Names of compiled functions in one of which everything ends that waits."""


def compiled_calls(function):
    """Calls a function; returns the names of the compiled functions that it has called in this thread."""
    names, before = set(), sys.getprofile()

    def profile(_, event, argument):
        if event == "c_call":
            names.add(argument.__name__)

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return names


def test_a_server_that_hangs_delays_the_steps_by_nothing_and_the_end_by_a_bound(tmp_path, play, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "END_SECONDS", {"stopped": 0.5})
    tracker = play(Played())
    tracker.gate.clear()
    with open_tracking(LOG, Workdir(tmp_path), CONFIG, writes=True) as note:
        called = compiled_calls(partial(note, train_record(1)))
        # Time would say more about the machine.
        assert "put" in called
        assert not called & WAITING
        joined, join = [], threading.Thread.join
        monkeypatch.setattr(threading.Thread, "join", lambda *args: [joined.append(args[1:]), join(*args)])
    # One wait, with its bound; the server has not answered.
    assert [seconds for seconds in joined if seconds] == [(0.5,)]
    assert tracker.calls == []
    assert "it takes too long to answer; the run goes on without it" in capsys.readouterr().err
    tracker.gate.set()


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_missing_client_is_refused_with_the_command_that_installs_it(package, monkeypatch, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    # Logs in the working directory look like a package without code.
    (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        check_clients(LogConfig(**{package: "x"}))
    assert str(caught.value) == (
        f"log.{package} needs the package {package}, which is not installed; run: {install_command(package)}"
    )


def test_a_missing_client_is_refused_before_anything_else(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log\.wandb needs the package wandb"):
        train_command(["--log.wandb", "x", "--workdir", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path / "c")])
    assert list(tmp_path.iterdir()) == []
