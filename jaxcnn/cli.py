"""Runs a command: every mistake of the user is one line and an exit status, never a traceback."""

import io
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from jaxcnn.disk import remedy
from jaxcnn.errors import TemporaryError, UserError

TEMPORARY = 75
"""Exit status of an error after which the same command may succeed: EX_TEMPFAIL."""
MEMORY = "close other programs, or use a larger machine"
"""What to do if there is not enough memory."""
IMPORT = "<frozen importlib._bootstrap>"
"""What Python calls the file of the functions that import a module."""
POSTPONED_SECONDS = 0.05
"""Time after which a signal during an import is sent again."""

_postponed = set[int]()


def run(main: Callable[[Sequence[str]], None], prog: str, *, memory: str = MEMORY) -> None:
    """Runs a command's `main` on the process's arguments.

    Errors are printed as one line. A `UserError` exits with status 2, or `TEMPORARY` if it is a `TemporaryError`; an
    `OSError` such as a full disk and a lack of memory with 1, an interrupt with 130, SIGTERM with 143, SIGHUP with 129
    unless it is ignored, as under nohup.

    Args:
      main: the command, a function of its arguments.
      prog: what the messages call it.
      memory: what to do if there is not enough memory.
    """
    _handle_signals()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # The encoding of the terminal may lack characters of class names.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _flushed():
            main(sys.argv[1:])
    except BrokenPipeError:
        discard_output()
    except (Exception, KeyboardInterrupt) as error:
        _release_signals()  # A second Ctrl-C would interrupt the report of the first.
        found = explain(error, memory=memory)
        if found is None:
            raise
        reason, status = found
        print_error(f"{prog}: {reason}")
        try:
            _flush()
        except OSError:  # What could not be written before: the interpreter would report it again.
            _discard()
        sys.exit(status)
    finally:
        _release_signals()


def print_error(line: str) -> None:
    """Prints a line on standard error, if that can be written; see `printable`."""
    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def explain(error: BaseException, *, memory: str) -> tuple[str, int] | None:
    """Returns what is wrong and the exit status, see `run`; None for what is no error of the user or the system."""
    if isinstance(error, UserError):
        return str(error), TEMPORARY if isinstance(error, TemporaryError) else 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError):
        advice = remedy(error)
        return f"{error}; {advice} and run the same command again" if advice else str(error), 1
    if is_out_of_memory(error):
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return f"there is not enough memory ({reason}); {memory}", 1
    return None


@contextmanager
def _flushed() -> Iterator[None]:
    """Writes what standard output still holds at the end: later, a closed pipe would be an error of the interpreter."""
    try:
        yield
    except SystemExit:  # As after `--help`.
        _flush()
        raise
    _flush()


def _flush() -> None:
    if sys.stdout is not None:  # None: it is closed.
        sys.stdout.flush()


def discard_output() -> NoReturn:
    """Ends the process with status 1: who reads its output has seen enough, as `head` has. The rest goes nowhere."""
    _discard()
    sys.exit(1)


def _discard() -> None:
    """Lets what standard output still holds, and what is written to it from now on, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Opens the null device for standard streams that are closed, as by `2>&-`.

    Else a file of the command would be opened under the number of one, and have what is printed written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _handle_signals() -> None:
    """Makes signals raise exceptions, except those that are ignored."""
    # Until now Ctrl-C has ended the process at once.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _end)


def _release_signals() -> None:
    """Lets signals end the process without an exception: nothing is left to remove, and the interpreter would print it.

    Handlers of the program that has called `run` stay.
    """
    for number in signal.valid_signals():
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error is Python's, NumPy's or XLA's for a lack of memory. XLA is not imported for that."""
    from_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (from_xla and "RESOURCE_EXHAUSTED" in str(error))


def _end(number: int, frame: types.FrameType | None) -> None:
    """Exits by an exception, so that unfinished files are removed on the way.

    During an import the signal is sent again a little later: libraries drop an exception there, or raise another one.
    """
    if _is_importing(frame):
        if number not in _postponed:
            _postponed.add(number)
            timer = threading.Timer(POSTPONED_SECONDS, _send_again, [number])
            timer.daemon = True
            timer.start()
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(128 + number)


def _is_importing(frame: types.FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != IMPORT:
        frame = frame.f_back
    return frame is not None


def _send_again(number: int) -> None:
    _postponed.discard(number)
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def printable(text: str) -> str:
    """Replaces characters that could control the terminal: names of files and classes may be untrusted."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
