"""Runs a command: every mistake of the user is one line and an exit status, never a traceback."""

import io
import signal
import sys
import types
from collections.abc import Callable, Sequence

from jaxcnn.errors import UserError


def run(main: Callable[[Sequence[str]], None], prog: str) -> None:
    """Runs a command's `main` on the process's arguments.

    A `UserError` is printed as one line and ends the process with status 2, what the system refuses (a full disk, a
    missing permission) likewise with 1, an interrupt with 130, SIGTERM with 143.
    """
    signal.signal(signal.SIGTERM, _end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows may know no é, and names of classes come from strangers.
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        sys.exit(130)


def _end(number: int, _: types.FrameType | None) -> None:
    """Ends the process as an exception does: what it has begun to write is removed on the way."""
    sys.exit(128 + number)


def printable(text: str) -> str:
    """Text without characters that could steer a terminal: names of files and classes come from strangers."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
