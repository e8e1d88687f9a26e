"""The report of a run that goes on."""

import numpy as np
import pytest
from log_lines import validation_line
from recorded_runs import write_run

from jaxcnn.data import Dataset, Split
from jaxcnn.run import live_report
from jaxcnn.run.live_report import LiveReport
from jaxcnn.run.metrics_log import StartRecord, ValidationRecord

EVALUATED = ValidationRecord(step=8, epoch=2.0, loss=1.0, top1=0.5, top5=1.0, ece=0.1)


@pytest.fixture
def report(tmp_path, monkeypatch):
    """The report of a run, which is due at once, and a clock that stands still."""
    write_run(tmp_path, note="<b>mine", finished=False)
    pictures = Split(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1], np.int32))
    dataset = Dataset(name="pets", names=("cat", "dog"), wnids=(), license="", train=pictures, validation=pictures)
    monkeypatch.setattr(live_report, "RENEW_SECONDS", 0.0)
    return LiveReport(tmp_path, dataset)


def test_the_page_shows_the_run_so_far(report, tmp_path):
    report.note(EVALUATED)
    page = (tmp_path / "report.html").read_text()
    assert "Epoch 2 of 2: validation top-1 1.0000" in page
    assert page.count("<svg") == page.count('<figure role="img" aria-label="') == 3
    assert "<dt>Last step</dt><dd>09 September 2001, 01:46 UTC</dd>" in page
    assert "Finished" not in page
    assert "&lt;b&gt;mine" in page
    assert "//" not in page.replace("http://www.w3.org", "")


def test_of_equal_epochs_the_last_is_the_best_as_its_checkpoint_is(report, tmp_path):
    with (tmp_path / "metrics.jsonl").open("a") as log:
        # The loss rises.
        log.writelines(f"{validation_line(4 * n, epoch=n, top1=1.0, loss=n)}\n" for n in (3, 4))
    report.note(EVALUATED)
    assert "The best so far is epoch 4 with top-1" in (tmp_path / "report.html").read_text()


def test_only_evaluations_renew_it(report, tmp_path):
    report.note(StartRecord(step=0, epoch=0.0))
    assert not (tmp_path / "report.html").exists()


def test_it_takes_a_hundredth_of_the_time(report, tmp_path, monkeypatch):
    clock = iter([10.0, 10.0, 12.0, 211.0, 213.0, 213.0, 215.0])
    monkeypatch.setattr(live_report.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(report, "render", lambda: "page")
    report._due = 0
    for expected in (True, False, True):
        (tmp_path / "report.html").unlink(missing_ok=True)
        report.note(EVALUATED)
        assert (tmp_path / "report.html").exists() == expected


def test_a_full_disk_does_not_end_the_run(report, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live_report, "write_atomically", fail)
    report.note(EVALUATED)
    assert capsys.readouterr().err == "warning: the report cannot be renewed: [Errno 28] No space left on device\n"
