"""The line that says what a run takes, measured in its first steps."""

import time
from contextlib import nullcontext

import pytest

from jaxcnn.run import progress
from jaxcnn.run.progress import open_progress


@pytest.mark.parametrize(
    ("seconds", "printed_after"),
    [
        ([30, 20, 1, 1, 1, 1], 5),  # The first two are compiled.
        ([30, 20, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 8),
        ([30, 20, 9, 9, 9], 5),
        ([30, 20, 0.5, 0.5], None),
    ],
)
def test_the_steps_after_the_compiled_ones_are_measured_once(monkeypatch, capsys, seconds, printed_after):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    printed = None
    with open_progress(total_steps=10, first_step=0, epochs=2, expect=lambda mean: f"{mean:g} s") as shown:
        for number, step in enumerate(seconds, start=1):
            clock[0] += step
            shown.count_step()
            said = capsys.readouterr().err
            if said:
                assert printed is None
                printed = number
                assert said == f"{seconds[-1]:g} s\n"
    assert printed == printed_after


def print_slowly(context, seconds=0.3):
    with context:
        time.sleep(seconds)


def test_a_long_stage_is_announced_and_timed(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.1)
    print_slowly(progress.stage("decoding [all]"))
    assert capsys.readouterr().err == "decoding [all] ...\ndecoding [all]: 0 s\n"


def test_a_short_stage_is_silent(capsys):
    print_slowly(progress.stage("decoding"), seconds=0)
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_has_no_time(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.1)
    with pytest.raises(TypeError), progress.stage("decoding"):
        print_slowly(nullcontext(time.sleep(0.3)), seconds="a second")
    assert capsys.readouterr().err == "decoding ...\n"


def test_in_training_a_stage_is_announced_once(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.1)
    with open_progress(total_steps=10, first_step=0, epochs=2, expect=str) as shown:
        for side in (32, 32, 48):
            print_slowly(shown.doing(f"compiling for {side}", first=side))
        for _ in range(2):
            print_slowly(shown.doing("evaluating"))
    said = [line for line in capsys.readouterr().err.splitlines() if line.endswith("...")]
    assert said == ["compiling for 32 ...", "compiling for 48 ...", "evaluating ..."]


def test_quiet_mode_prints_warnings_only(monkeypatch, capsys):
    monkeypatch.setattr(progress.console, "quiet", True)
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.1)
    print_slowly(progress.stage("decoding"))
    progress.console.print("a line")
    progress.warn("leakage [all]")
    assert capsys.readouterr().err == "warning: leakage [all]\n"
