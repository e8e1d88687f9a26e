"""The log of a run on disk."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_lines import LINES, train_line, validation_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxcnn.errors import UserError
from jaxcnn.run.metrics_log import RunLog, open_log, read_log
from jaxcnn.run.progress import open_progress


def test_a_log_goes_on_after_a_torn_line(tmp_path):
    with open_log(tmp_path) as log:
        log.write("train", step=1, epoch=0.25, loss=2.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    with open_log(tmp_path) as log:
        log.write("train", step=2, epoch=0.5, loss=1.5)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert [json.loads(lines[i])["loss"] for i in (0, 2)] == [2.5, 1.5]


@given(st.integers(1, 10**9), st.floats(0, 1e9), st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_values_come_back_as_written(tmp_path_factory, step, epoch, value):
    workdir = tmp_path_factory.mktemp("log")
    with open_log(workdir) as log:
        log.write("validation", step=step, epoch=epoch, loss=value)
    line = json.loads((workdir / "metrics.jsonl").read_text())
    assert (line["kind"], line["step"], line["loss"]) == ("validation", step, value)
    assert abs(line["epoch"] - epoch) <= 1e-4
    assert line["time"] > 1.7e9


def test_tensorboard_reads_what_was_written(tmp_path):
    with open_log(tmp_path) as log:
        log.write("train", step=7, epoch=0.5, loss=2.5, top1=0.25)
        log.write("validation", step=14, epoch=1.0, loss=1.5)
    events = EventAccumulator(str(tmp_path)).Reload()
    read = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read == {"train/loss": [(7, 2.5)], "train/top1": [(7, 0.25)], "validation/loss": [(14, 1.5)]}
    (line, _) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert events.Scalars("train/loss")[0].wall_time == pytest.approx(json.loads(line)["time"], abs=0.001)


FULL_DISK = """
import resource, sys
from pathlib import Path
from jaxcnn.errors import UserError
from jaxcnn.run.metrics_log import open_log
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # a write beyond fails as it does on a full disk
try:
    with open_log(folder) as log:
        for step in range(1000):
            log.write("validation", step=step, epoch=0.0, **{f"v{i}": 1.0 for i in range(int(sys.argv[2]))})
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(("values", "fullest"), [(1, "metrics.jsonl"), (20, "events.out.*")])
def test_a_full_disk_is_told_and_not_waited_for(tmp_path, values, fullest):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(values)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == (
        f"the log cannot be written to {tmp_path}: File too large; make room and run again to resume\n"
    ), done.stderr
    assert done.returncode == 0
    assert max(tmp_path.iterdir(), key=lambda file: file.stat().st_size).match(fullest)


def test_a_workdir_that_is_not_there_is_told(tmp_path):
    with (
        pytest.raises(UserError, match=r"log cannot be written to .*gone: No such file"),
        open_log(tmp_path / "gone"),
    ):
        pass


def test_without_a_terminal_only_the_lines_are_printed(capsys):
    with open_progress(total_steps=10, first_step=0) as progress:
        progress.update(step=3, epoch="0.3", loss=1.0, images_per_second=100.0)
        progress.say("epoch 1/2: [bold] is no markup, and a line of more than eighty characters is not wrapped at all")
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        said.err == "epoch 1/2: [bold] is no markup, and a line of more than eighty characters is not wrapped at all\n"
    )


def test_the_log_is_read_by_kind(tmp_path):
    (tmp_path / "m").write_text("\n".join(['{"kind": "start", "step": 0}', *LINES, '{"kind": "other"}', "[1]", ""]))
    log = read_log(tmp_path / "m")
    assert [each["step"] for each in log.train] == [10, 20, 30]
    assert [each["top1"] for each in log.validation] == [0.25, 0.5, 0.75]


def test_a_resumed_run_overrules_what_it_repeats(tmp_path):
    steps = [(10, 1), (20, 1), (30, 1), (15, 2), (30, 2), (40, 2)]
    lines = [train_line(step, loss=loss) for step, loss in steps]
    (tmp_path / "m").write_text("\n".join([*lines[:3], validation_line(30), *lines[3:], validation_line(30, top1=0.9)]))
    log = read_log(tmp_path / "m")
    assert [(each["step"], each["loss"]) for each in log.train] == [(10, 1), (15, 2), (30, 2), (40, 2)]
    assert [(each["step"], each["top1"]) for each in log.validation] == [(30, 0.9)]


@given(cut=st.integers(0, len("\n".join(LINES))), resumed=st.booleans())
def test_half_a_line_is_skipped(tmp_path_factory, cut, resumed):
    whole = "\n".join(LINES)
    path = tmp_path_factory.mktemp("log") / "m"
    path.write_text(whole[:cut] + ("\n" + train_line(99) if resumed else ""))
    log = read_log(path)
    assert len(log.train) + len(log.validation) == whole[:cut].count("}") + resumed


def test_no_log(tmp_path):
    assert read_log(tmp_path / "gone") == RunLog([], [])
    assert RunLog([], []).validation_of(0) is None
    assert RunLog([], []).seconds(4) == 0


def test_the_validation_of_a_checkpoint_is_found_by_its_step():
    log = RunLog([], [{"step": float(step), "top1": top1} for step, top1 in ((1, 0.5), (2, 0.7), (3, 0.7))])
    assert log.validation_of(2) == {"step": 2.0, "top1": 0.7}
    assert log.validation_of(4) is None


def test_what_was_lost_is_forgotten_where_the_run_goes_on(tmp_path):
    lost = [train_line(10), train_line(20), validation_line(20), train_line(30), validation_line(40)]
    (tmp_path / "m").write_text("\n".join([*lost, '{"kind": "start", "step": 20, "epoch": 2.0, "time": 1e9}']))
    log = read_log(tmp_path / "m")
    assert [each["step"] for each in log.train] == [10, 20]
    assert [each["step"] for each in log.validation] == [20]


def test_time_counts_each_step_once():
    log = RunLog([{"step": 10.0, "images_per_second": 20.0}, {"step": 40.0, "images_per_second": 60.0}], [])
    assert log.seconds(batch_size=8) == pytest.approx(10 * 8 / 20 + 30 * 8 / 60)
    assert log.seconds(batch_size=8, end=10) == pytest.approx(10 * 8 / 20)
    assert log.seconds(batch_size=8, start=20) == pytest.approx(20 * 8 / 60)
    assert log.seconds(batch_size=8, start=40) == 0


def test_steps_belong_to_the_epoch_they_were_taken_in():
    records = [(3, 0.3), (10, 1.0), (14, 1.4), (20, 2.0), (21, 2.1)]
    log = RunLog([{"step": float(step), "epoch": epoch} for step, epoch in records], [])
    assert log.steps_by_resolution(lambda epoch: (8, 16, 8)[epoch]) == {8: 11, 16: 10}
    assert RunLog([], []).steps_by_resolution(lambda epoch: 8) == {}


def test_steps_were_taken_at_the_resolution_that_was_recorded():
    records = [{"step": 3.0, "epoch": 0.3}, {"step": 10.0, "epoch": 1.0, "resolution": 16.0}]
    assert RunLog(records, []).steps_by_resolution(lambda epoch: 8) == {8: 3, 16: 7}


def test_steps_of_an_epoch():
    assert RunLog([], [{"step": 24.0, "epoch": 2.0}]).steps_per_epoch == 12
    assert RunLog([], []).steps_per_epoch is None
