"""Signals during training, also while the main thread is in compiled code."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxcnn import signals
from jaxcnn.signals import NOTICE, SIGNALS, stop_on_signal

PROGRAM = """
import ctypes, signal, sys, threading
from jaxcnn import signals

signals.REPEAT_SECONDS, signals.GRACE_SECONDS = float(sys.argv[1]), 0.2
# Like a compilation, a call of this library neither holds the interpreter nor returns at a signal.
library = ctypes.CDLL("python", handle=ctypes.pythonapi._handle)
library.PyThread_allocate_lock.restype = ctypes.c_void_p
lock = ctypes.c_void_p(library.PyThread_allocate_lock())

def end_call():
    print("started", flush=True)
    sys.stdin.readline()
    library.PyThread_release_lock(lock)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has what it starts ignore it.
with signals.stop_on_signal() as stop:
    library.PyThread_acquire_lock(lock, 1)
    timer = threading.Timer(0.2, end_call)  # By then the main thread is in the second call.
    timer.daemon = True
    timer.start()
    library.PyThread_acquire_lock(lock, 1)
    print("left", stop.signal.name, flush=True)
"""


REPEAT_SECONDS = 0.2
"""Time within which the program takes a signal for the first, unless a test says otherwise."""


def start(repeat: float = REPEAT_SECONDS) -> subprocess.Popen[bytes]:
    """Starts a process whose main thread is in compiled code until a line is written to it."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", PROGRAM, str(repeat)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def read_notice(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    return process.stderr.read(len(NOTICE))


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_announced_at_once_and_obeyed_later(number):
    process = start()
    process.send_signal(number)
    assert read_notice(process) == NOTICE
    assert process.poll() is None
    assert process.communicate(b"go on\n", timeout=100) == (b"left %s\n" % number.name.encode(), b"")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_in_compiled_code(number):
    process = start()
    process.send_signal(number)
    assert read_notice(process) == NOTICE
    time.sleep(2 * REPEAT_SECONDS)
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    process.communicate()


def test_a_second_signal_interrupts_python_as_usual(capfd, monkeypatch):
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)

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


def test_a_signal_that_is_sent_twice_at_once_counts_once():
    def send_twice(stop):
        os.kill(os.getpid(), signal.SIGINT)
        while stop.signal is None:
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    with stop_on_signal() as stop:
        try:
            send_twice(stop)
        except KeyboardInterrupt:
            pytest.fail("the second interrupted")
    assert stop.signal is signal.SIGINT


def test_a_signal_that_is_sent_twice_at_once_does_not_end_compiled_code():
    process = start(repeat=60.0)
    process.send_signal(signal.SIGTERM)
    assert read_notice(process) == NOTICE
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # More than the time to end after the second.
    assert process.communicate(b"go on\n", timeout=100) == (b"left SIGTERM\n", b"")
    assert process.returncode == 0


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
