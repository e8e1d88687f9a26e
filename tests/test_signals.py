"""Signals during training, also while the main thread is in compiled code."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxcnn.signals import NOTICE, SIGNALS, stop_on_signal

PROGRAM = """
import hashlib, threading
from jaxcnn.signals import stop_on_signal
with stop_on_signal() as stop:
    threading.Timer(0.5, print, ["started"], {{"flush": True}}).start()  # By then the main thread is in compiled code.
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})  # Like a compilation: long, and not in Python.
    print("left", stop.signal.name, flush=True)
"""


def start(rounds: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(rounds=rounds)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def read_notice(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    return process.stderr.read(len(NOTICE))


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_announced_at_once_and_obeyed_later(number):
    process = start(rounds=8_000_000)
    process.send_signal(number)
    assert read_notice(process) == NOTICE
    assert process.poll() is None
    assert process.communicate(timeout=100) == (b"left %s\n" % number.name.encode(), b"")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_in_compiled_code(number):
    process = start(rounds=2**31 - 1)
    process.send_signal(number)
    assert read_notice(process) == NOTICE
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    process.communicate()


def test_a_second_signal_interrupts_python_as_usual(capfd):
    def interrupt_twice(stop):
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while stop.signal is None:
            assert time.monotonic() < deadline
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    with stop_on_signal() as stop, pytest.raises(KeyboardInterrupt):
        interrupt_twice(stop)
    assert capfd.readouterr().err.encode() == NOTICE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert stop.signal is None


def test_handlers_and_threads_are_restored():
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with stop_on_signal() as stop:
        assert any(thread.name == "signals" for thread in threading.enumerate())
    assert stop.signal is None
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert not any(thread.name == "signals" for thread in threading.enumerate())
    assert signal.set_wakeup_fd(-1) == -1
