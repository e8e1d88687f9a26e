"""What commands print while they work."""

import time
from contextlib import nullcontext

import pytest

from jaxcnn import terminal


def print_slowly(context, seconds=0.3):
    with context:
        time.sleep(seconds)


def test_a_long_stage_is_announced_and_timed(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 0.1)
    print_slowly(terminal.stage("decoding [all]"))
    assert capsys.readouterr().err == "decoding [all] ...\ndecoding [all]: 0 s\n"


def test_a_short_stage_is_silent(capsys):
    print_slowly(terminal.stage("decoding"), seconds=0)
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_has_no_time(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 0.1)
    with pytest.raises(TypeError), terminal.stage("decoding"):
        print_slowly(nullcontext(time.sleep(0.3)), seconds="a second")
    assert capsys.readouterr().err == "decoding ...\n"


def test_quiet_mode_prints_warnings_only(monkeypatch, capsys):
    monkeypatch.setattr(terminal.console, "quiet", True)
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 0.1)
    print_slowly(terminal.stage("decoding"))
    terminal.console.print("a line")
    terminal.warn("leakage [all]")
    assert capsys.readouterr().err == "warning: leakage [all]\n"
