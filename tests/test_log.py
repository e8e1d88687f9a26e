"""The log of a run on disk."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxcnn.errors import UserError
from jaxcnn.log import open_log, open_progress


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
from jaxcnn.log import open_log
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
        f"the log cannot be written to {tmp_path}: File too large; make room and run again to go on\n"
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
