"""The log of a run read back: each step once, whatever was resumed or torn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_lines import LINES, train_line, validation_line

from jaxcnn.history import RunLog, read_log


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
