"""Runs a target with one fault, and checks what it says and leaves."""

import io
import re
import shutil
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from jaxcnn import cli
from tests.faults.injection import Fault, Injector


class Target(Protocol):
    """Something that writes or reads files.

    Attributes:
      flips: whether reads get data with a flipped bit; otherwise operations fail.
    """

    flips: bool

    def prepare(self, inputs: Path) -> None:
        """Makes what is read in a folder where nothing fails; called once."""

    def begin(self, folder: Path) -> None:
        """Writes what is there before, into an empty folder; called once."""

    def work(self, folder: Path) -> object:
        """Does the work; what it returns must not depend on a fault, unless it raises an error of the user."""

    def check(self, folder: Path) -> None:
        """Raises an AssertionError if a file has its final name but is not whole."""

    def read(self, folder: Path) -> object:
        """Returns what the work leaves; a fault must not change it if the work is done again."""


class Schedules:
    """Runs a target with faults.

    Attributes:
      operations: how many file operations its work takes.
      missed: how many faults did not come: threads may make fewer operations than when they were counted.
    """

    def __init__(self, target: Target, place: Path) -> None:
        self._target, self._place, self._injector = target, place, Injector()
        self.missed = self._copies = 0
        inputs, self._before = place / "inputs", place / "before"
        for folder in (inputs, self._before):
            folder.mkdir()
        target.prepare(inputs)
        target.begin(self._before)
        # Undisturbed.
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            target.work(self._copy())  # What is imported or compiled once is not counted.
            undisturbed = self._copy()
            with self._injector.inject(undisturbed, Fault(flips=target.flips)):
                self._returned = target.work(undisturbed)
        self.operations = self._injector.operations
        self._expected = target.read(undisturbed)

    def run(self, seed: int) -> str | None:
        """Runs the work with the fault of a seed, and again without; returns what is wrong, or None."""
        folder = self._copy()
        fault = Fault.of(seed, operations=self.operations, flips=self._target.flips)
        with self._injector.inject(folder, fault):
            status, said, returned = attempt(self._target, folder)
        self.missed += not self._injector.happened
        happened = f"{fault}, {self._injector.happened}"
        try:
            if status:
                check_message(said, status, folder)
            else:
                assert returned == self._returned, f"something else was returned; it says: {said}"
                self._check_read(folder, "it ends as if undisturbed, but leaves other files")
            self._target.check(folder)
            # The same command again.
            status, said, _ = attempt(self._target, folder)
            assert not status, f"the command fails when it is repeated: {said}"
            self._check_read(folder, "other files are left")
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{traceback.format_exc()}"
            return f"{happened}: {kind}{error}"
        return None

    def _check_read(self, folder: Path, problem: str) -> None:
        found = self._target.read(folder)
        assert found == self._expected, f"{problem}: {differences(found, self._expected)}"

    def _copy(self) -> Path:
        """Copies the folder from before the work, to where no thread of an earlier copy still removes anything."""
        shutil.rmtree(self._place / f"disk{self._copies}", ignore_errors=True)
        self._copies += 1
        return Path(shutil.copytree(self._before, self._place / f"disk{self._copies}"))


def attempt(target: Target, folder: Path) -> tuple[int, str, Any]:
    """Runs the work as a command; returns its exit status, what it prints to standard error, and what it returns."""
    returned: list[object] = []
    with redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
        try:
            cli.run(lambda _: returned.append(target.work(folder)), "command")
        except SystemExit as end:
            if int(end.code or 0) > 128:
                raise  # A signal ends the schedules, too.
            return int(end.code or 0), said.getvalue(), None
        except Exception:
            return -1, traceback.format_exc(), None
    return 0, said.getvalue(), returned[0]


def check_message(said: str, status: int, folder: Path) -> None:
    """Checks that an error is one line that says what is wrong, where and what to do."""
    *_, last = said.splitlines() or [""]
    assert status in (1, 2), said
    assert "Traceback" not in said, said
    assert last.startswith("command: "), said
    assert str(folder) in last, f"it does not say where: {last}"
    advice = re.search(r"[;.] .*\b(make room|check|again|give|remove|allow|choose|Set|Copy|Make it)\b", last)
    assert advice, f"it does not say what to do: {last}"


def differences(found: Any, expected: Any) -> str:
    """Returns which values of two mappings differ."""
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return f"{found} instead of {expected}"
    return ", ".join(str(key) for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
