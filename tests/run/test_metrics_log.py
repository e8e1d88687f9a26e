"""The log of a run: what is written, and what is read back, also after a kill and a resume."""

import errno
import json
import math
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_lines import LINES, train_line, train_record, validation_line, validation_record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxcnn.errors import UserError
from jaxcnn.run.metrics_log import EndRecord, RunLog, StartRecord, append_end, open_log, read_log
from jaxcnn.run.progress import open_progress


def test_records_are_echoed_and_passed_to_a_listener(tmp_path):
    heard = []
    with (tmp_path / "echo").open("w") as echo, open_log(tmp_path, echo=echo) as log:
        log.listeners.append(heard.append)
        log.write(train_record(1, loss=2.5))
    assert (tmp_path / "echo").read_text() == (tmp_path / "metrics.jsonl").read_text()
    assert [record.loss for record in heard] == [2.5]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_an_echo_that_cannot_be_written_costs_no_record(monkeypatch, tmp_path, number):
    heard, tries = [], []

    def write(line):
        tries.append(line)
        raise OSError(number, os.strerror(number))

    with (tmp_path / "echo").open("w") as echo:
        monkeypatch.setattr(echo, "write", write)
        with open_log(tmp_path, echo=echo) as log:
            log.listeners.append(heard.append)
            assert not log.is_unread
            for step in (1, 2):
                log.write(train_record(step))
            assert log.is_unread
    assert len(tries) == 1
    assert [record.step for record in read_log(tmp_path / "metrics.jsonl").train] == [1, 2]
    assert [record.step for record in heard] == [1, 2]


def test_a_log_is_continued_after_half_a_line(tmp_path):
    with open_log(tmp_path) as log:
        log.write(train_record(1, loss=2.5))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    with open_log(tmp_path) as log:
        log.write(train_record(2, loss=1.5))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert [json.loads(lines[i])["loss"] for i in (0, 2)] == [2.5, 1.5]
    assert [record.loss for record in read_log(tmp_path / "metrics.jsonl").train] == [2.5, 1.5]


@given(st.integers(1, 10**9), st.floats(0, 1e9), st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_values_come_back_as_written(tmp_path_factory, step, epoch, value):
    workdir = tmp_path_factory.mktemp("log")
    with open_log(workdir) as log:
        log.write(validation_record(step, epoch=epoch, loss=value))
    line = json.loads((workdir / "metrics.jsonl").read_text())
    assert list(line) == ["kind", "step", "epoch", "time", "loss", "top1", "top5", "ece"]
    assert (line["kind"], line["step"], line["loss"]) == ("validation", step, value)
    assert abs(line["epoch"] - epoch) <= 1e-4
    assert line["time"] > 1.7e9
    (read,) = read_log(workdir / "metrics.jsonl").validation
    assert (read.step, read.loss, read.epoch) == (step, value, line["epoch"])


def test_every_kind_of_record_is_read_as_written(tmp_path):
    train, validation = train_record(4, resolution=48, time=5.0), validation_record(4, time=6.0)
    with open_log(tmp_path) as log:
        for record in (StartRecord(step=0, epoch=0.0), train_record(9), train, validation):
            log.write(record)
    first, *_ = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {"kind": "start", "step": 0, "epoch": 0.0, "time": first["time"]}
    assert read_log(tmp_path / "metrics.jsonl") == RunLog([train], [validation])


def test_an_end_is_void_if_any_record_follows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for follower in (StartRecord(step=4, epoch=1.0), train_record(8), validation_record(8)):
        append_end(path, EndRecord(step=4, epoch=1.0))
        assert [record.step for record in read_log(path).ends] == [4]
        with open_log(tmp_path) as log:
            log.write(follower)
        assert read_log(path).ends == []


def test_tensorboard_reads_what_was_written(tmp_path):
    with open_log(tmp_path) as log:
        log.write(train_record(7, epoch=0.5, loss=2.5, top1=0.25, learning_rate=0.125, images_per_second=16.0))
        log.write(validation_record(14, epoch=1.0, loss=1.5, top1=0.75, top5=1.0, ece=0.0625))
    events = EventAccumulator(str(tmp_path)).Reload()
    read = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read == {
        "train/loss": [(7, 2.5)],
        "train/top1": [(7, 0.25)],
        "train/learning_rate": [(7, 0.125)],
        "train/images_per_second": [(7, 16.0)],
        "validation/loss": [(14, 1.5)],
        "validation/top1": [(14, 0.75)],
        "validation/top5": [(14, 1.0)],
        "validation/ece": [(14, 0.0625)],
    }
    (line, _) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert events.Scalars("train/loss")[0].wall_time == pytest.approx(json.loads(line)["time"], abs=0.001)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("writes", [True, False])
def test_a_value_that_is_not_finite_is_refused_in_every_process(tmp_path, value, writes):
    message = (
        rf"^training diverged: after step 7 the validation loss is {value}; earlier checkpoints are whole\. Lower "
    )
    with open_log(tmp_path, writes=writes) as log, pytest.raises(UserError, match=message):
        log.write(validation_record(7, loss=value))
    assert not writes or (tmp_path / "metrics.jsonl").read_text() == ""


FULL_DISK = """
import dataclasses, resource, sys
from pathlib import Path
from jaxcnn.errors import UserError
from jaxcnn.run.metrics_log import Record, open_log
folder = Path(sys.argv[1])
values = [(f"v{i}", float, 1.0) for i in range(int(sys.argv[2]))]
options = {"bases": (Record,), "namespace": {"kind": "wide"}, "frozen": True, "kw_only": True}
Wide = dataclasses.make_dataclass("Wide", values, **options)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # a write beyond fails as it does on a full disk
try:
    with open_log(folder) as log:
        for step in range(1000):
            log.write(Wide(step=step, epoch=0.0))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(("values", "fullest"), [(1, "metrics.jsonl"), (20, "events.out.*")])
def test_a_full_disk_is_reported_at_once(tmp_path, values, fullest):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(values)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert re.fullmatch(
        rf"the log cannot be written to {tmp_path}: File too large \([\d,.]+ MB free\); make room and run again to "
        r"resume\n",
        done.stdout,
    ), done.stderr
    assert done.returncode == 0
    assert max(tmp_path.iterdir(), key=lambda file: file.stat().st_size).match(fullest)


def test_records_and_the_name_of_their_file_reach_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("jaxcnn.run.metrics_log.sync", synced.append)
    with open_log(tmp_path) as log:
        log.sync()
    assert synced == [tmp_path / "metrics.jsonl", tmp_path]

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("jaxcnn.run.metrics_log.sync", fail)
    message = rf"^the log cannot be written to {tmp_path}: Input/output error; check the disk and run again to resume$"
    with open_log(tmp_path) as log, pytest.raises(UserError, match=message):
        log.sync()
    with open_log(tmp_path, writes=False) as log:
        log.sync()


def test_a_missing_workdir_is_reported(tmp_path):
    with (
        pytest.raises(UserError, match=r"log cannot be written to .*gone: No such file"),
        open_log(tmp_path / "gone"),
    ):
        pass


def test_without_a_terminal_only_the_lines_are_printed(capsys):
    with open_progress(total_steps=10, first_step=0, epochs=2, expect=str, to_go=lambda record, pace: 0.0) as progress:
        progress.update(train_record(3))
        progress.print(
            "epoch 1/2: [bold] is no markup, and a line of more than eighty characters is not wrapped at all"
        )
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        said.err == "epoch 1/2: [bold] is no markup, and a line of more than eighty characters is not wrapped at all\n"
    )


def test_the_log_is_read_by_kind(tmp_path):
    (tmp_path / "m").write_text(
        "\n".join(['{"kind": "start", "step": 0, "epoch": 0.0, "time": 1e9}', *LINES, '{"kind": "other"}', "[1]", ""])
    )
    log = read_log(tmp_path / "m")
    assert [record.step for record in log.train] == [10, 20, 30]
    assert [record.top1 for record in log.validation] == [0.25, 0.5, 0.75]
    assert log.damaged == [9]


def test_records_of_other_versions_are_read(tmp_path):
    older, newer = train_line(10), train_line(20, resolution=48.0, teacher_loss=0.5)
    (tmp_path / "m").write_text(f"{older}\n{newer}\n")
    assert [(record.step, record.resolution) for record in read_log(tmp_path / "m").train] == [(10, None), (20, 48)]


WRONG_VALUES = [
    {"step": None},
    {"step": "20"},
    {"step": 20.5},
    {"step": -1},
    {"loss": None},
    {"loss": True},
    {"loss": "1.5"},
    {"loss": float("nan")},
    {"loss": 1e300},
    {"epoch": []},
    {"epoch": -1},
    {"time": 1e18},
    {"images_per_second": 0},
    {"resolution": -8},
    {"kind": []},
    {"kind": None},
]


@pytest.mark.parametrize("change", WRONG_VALUES)
def test_a_record_with_a_wrong_value_is_skipped(tmp_path, change):
    wrong = json.dumps(json.loads(train_line(20)) | change)
    (tmp_path / "m").write_text(f"{train_line(10)}\n{wrong}\n{train_line(30)}\n")
    log = read_log(tmp_path / "m")
    assert ([record.step for record in log.train], log.damaged) == ([10, 30], [2])


def without(line, name):
    return json.dumps({key: value for key, value in json.loads(line).items() if key != name})


@pytest.mark.parametrize(
    "damaged",
    [
        *(without(train_line(20), name) for name in json.loads(train_line(20)) if name != "time"),
        *(without(validation_line(20), name) for name in json.loads(validation_line(20)) if name != "time"),
        '{"kind": "start", "step": 0}',
        train_line(20)[:40],
        train_line(20) + "\0",
        "\0" * 500,
        "\ufffd",
        "[" * 100_000,
        "[1]",
        "1",
        "{}",
    ],
)
def test_a_line_that_is_not_a_whole_record_is_skipped_and_listed(tmp_path, damaged):
    lines = [
        train_line(10),
        damaged,
        "",
        '{"kind": "of another version"}',
        train_line(30),
        validation_line(30),
        damaged,
    ]
    (tmp_path / "m").write_text("\n".join(lines))
    log = read_log(tmp_path / "m")
    assert ([record.step for record in log.train], [record.step for record in log.validation]) == ([10, 30], [30])
    assert log.damaged == [2, 7]


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match=r"m cannot be read: Is a directory; move it away to continue without it"):
        read_log(tmp_path / "m")


def test_a_resumed_run_overrules_the_steps_it_repeats(tmp_path):
    steps = [(10, 1), (20, 1), (30, 1), (15, 2), (30, 2), (40, 2)]
    lines = [train_line(step, loss=loss) for step, loss in steps]
    (tmp_path / "m").write_text("\n".join([*lines[:3], validation_line(30), *lines[3:], validation_line(30, top1=0.9)]))
    log = read_log(tmp_path / "m")
    assert [(record.step, record.loss) for record in log.train] == [(10, 1), (15, 2), (30, 2), (40, 2)]
    assert [(record.step, record.top1) for record in log.validation] == [(30, 0.9)]


@given(cut=st.integers(0, len("\n".join(LINES))), resumed=st.booleans())
def test_half_a_line_is_skipped(tmp_path_factory, cut, resumed):
    whole = "\n".join(LINES)
    path = tmp_path_factory.mktemp("log") / "m"
    path.write_text(whole[:cut] + ("\n" + train_line(99) if resumed else ""))
    log = read_log(path)
    assert len(log.train) + len(log.validation) == whole[:cut].count("}") + resumed


def test_a_run_without_a_log_has_an_empty_one(tmp_path):
    assert read_log(tmp_path / "gone") == RunLog([], [])
    assert RunLog([], []).validation_of(0) is None
    assert RunLog([], []).seconds(4) == 0


def test_the_validation_record_of_a_checkpoint_is_found_by_its_step():
    log = RunLog([], [validation_record(step, top1=top1) for step, top1 in ((1, 0.5), (2, 0.7), (3, 0.7))])
    assert log.validation_of(2) is log.validation[1]
    assert log.validation_of(4) is None


def test_lost_steps_are_dropped_where_the_run_resumes(tmp_path):
    lost = [train_line(10), train_line(20), validation_line(20), train_line(30), validation_line(40)]
    (tmp_path / "m").write_text("\n".join([*lost, '{"kind": "start", "step": 20, "epoch": 2.0, "time": 1e9}']))
    log = read_log(tmp_path / "m")
    assert [record.step for record in log.train] == [10, 20]
    assert [record.step for record in log.validation] == [20]


def test_time_counts_each_step_once():
    log = RunLog([train_record(10, images_per_second=20.0), train_record(40, images_per_second=60.0)], [])
    assert log.seconds(batch_size=8) == pytest.approx(10 * 8 / 20 + 30 * 8 / 60)
    assert log.seconds(batch_size=8, end=10) == pytest.approx(10 * 8 / 20)
    assert log.seconds(batch_size=8, start=20) == pytest.approx(20 * 8 / 60)
    assert log.seconds(batch_size=8, start=40) == 0


def test_steps_without_a_resolution_have_that_of_their_epoch():
    log = RunLog([train_record(step) for step in (3, 10, 14, 20, 21)], [])
    assert log.steps_by_resolution(lambda epoch: (8, 16, 8)[epoch]) == {8: 11, 16: 10}
    assert RunLog([], []).steps_by_resolution(lambda epoch: 8) == {}


def test_steps_have_their_recorded_resolution():
    records = [train_record(3), train_record(10, resolution=16)]
    assert RunLog(records, []).steps_by_resolution(lambda epoch: 8) == {8: 3, 16: 7}


def test_steps_per_epoch_follow_from_the_last_validation():
    assert RunLog([], [validation_record(24, epoch=2.0)]).steps_per_epoch == 12
    assert RunLog([], []).steps_per_epoch is None
