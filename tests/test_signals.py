"""What signals do while a run takes its steps, also where Python is kept from handling them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxcnn.signals import NOTICE, stop_on_signal

PROGRAM = """
import hashlib, threading
from jaxcnn.signals import stop_on_signal
with stop_on_signal() as stop:
    threading.Timer(0.5, print, ["started"], {{"flush": True}}).start()  # when it is in there
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})  # like a compilation: long, and not in Python
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_answered_at_once_and_heeded_later(number):
    process = start(rounds=8_000_000)
    process.send_signal(number)
    assert read_notice(process) == NOTICE
    assert process.poll() is None
    assert process.communicate(timeout=100) == (b"left %s\n" % number.name.encode(), b"")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ends_the_process_wherever_it_is(number):
    process = start(rounds=2**31 - 1)
    process.send_signal(number)
    assert read_notice(process) == NOTICE
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    process.communicate()


def test_a_second_interrupts_python_as_ever(capfd):
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


def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.signal is None


def test_nothing_is_left_behind():
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signal() as stop:
        assert any(each.name == "signals" for each in threading.enumerate())
    assert stop.signal is None
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not any(each.name == "signals" for each in threading.enumerate())
    assert signal.set_wakeup_fd(-1) == -1
