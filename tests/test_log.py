"""The log of a run on disk."""

import json

from hypothesis import given
from hypothesis import strategies as st

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


def test_without_a_terminal_only_the_lines_are_printed(capsys):
    with open_progress(total_steps=10, first_step=0) as progress:
        progress.update(step=3, epoch="0.3", loss=1.0, images_per_second=100.0)
        progress.say("epoch 1/2: [bold] is no markup, and a line of more than eighty characters is not wrapped at all")
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        said.err == "epoch 1/2: [bold] is no markup, and a line of more than eighty characters is not wrapped at all\n"
    )
