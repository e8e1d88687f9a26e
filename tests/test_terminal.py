"""What commands print while they work."""

import errno
import io
import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from rich.console import Console
from stages import take_long

from jaxcnn import terminal


def test_a_long_stage_is_announced_and_timed(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 0.1)
    clock = iter([100.0, 106.6])
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    take_long(terminal.stage("decoding [all]"))
    assert capsys.readouterr().err == "decoding [all] ...\ndecoding [all]: 7 s\n"


def test_a_short_stage_is_silent(capsys):
    with terminal.stage("decoding"):
        pass
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_has_no_time(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 0.1)

    def fail_late():
        take_long(nullcontext())
        raise TypeError

    with pytest.raises(TypeError), terminal.stage("decoding"):
        fail_late()
    assert capsys.readouterr().err == "decoding ...\n"


def test_quiet_mode_prints_warnings_only(monkeypatch, capsys):
    monkeypatch.setattr(terminal.console, "quiet", True)
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 0.1)
    take_long(terminal.stage("decoding"))
    terminal.console.print("a line")
    terminal.warn("leakage [all]")
    assert capsys.readouterr().err == "warning: leakage [all]\n"


@pytest.mark.parametrize("method", ["write", "flush"])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_line_that_cannot_be_printed_is_dropped(monkeypatch, number, method):
    class Stream(io.StringIO):
        def write(self, text):
            fail_in("write")
            return 0 if is_closed else super().write(text)

        def flush(self):
            fail_in("flush")

    def fail_in(called):
        if is_closed and called == method:
            raise OSError(number, os.strerror(number))

    is_closed, stream = True, Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    terminal.console.print("nobody reads this")
    terminal.warn("nor this")
    is_closed = False
    terminal.console.print("a line")
    assert stream.getvalue() == "a line\n"


@pytest.fixture
def screen(monkeypatch):
    """Lets a terminal of 80 columns take the place of standard error; returns what is drawn on it."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, color_system=None, width=80, _environ={})
    monkeypatch.setattr(terminal, "console", console)
    return drawn


def count_with_bars():
    """Counts to three with a bar, twice: as a loop, and as a whole; the bar of the second is kept."""
    assert list(terminal.with_bar("abc", "letters", total=3)) == ["a", "b", "c"]
    with terminal.open_bar("sets of [all]\x1b", total=3, is_kept=True) as update:
        update(advance=1)
        update(advance=2)


def test_a_bar_is_drawn_on_a_terminal(screen):
    count_with_bars()
    for words in ("letters", "sets of [all]\N{REPLACEMENT CHARACTER}", "3/3"):
        assert words in screen.getvalue()


def test_elsewhere_only_a_bar_that_is_kept_is_printed_once(capsys):
    count_with_bars()
    said = capsys.readouterr().err
    assert "letters" not in said
    assert said.count("sets of [all]\N{REPLACEMENT CHARACTER}") == said.count("3/3") == 1


def test_a_hidden_bar_is_not_drawn(screen):
    with terminal.open_bar("letters", total=3, is_hidden=True) as update:
        update(advance=3)
    assert screen.getvalue() == ""


def test_a_bar_is_not_drawn_in_quiet_mode(screen):
    terminal.console.quiet = True
    count_with_bars()
    assert screen.getvalue() == ""
