"""Runs a command: every mistake of the user is one line and an exit status, never a traceback."""

import io
import signal
import sys
import types
from collections.abc import Callable, Sequence

from jaxcnn.errors import UserError


def run(main: Callable[[Sequence[str]], None], prog: str) -> None:
    """Runs a command's `main` on the process's arguments.

    Errors are printed as one line. A `UserError` exits with status 2, an `OSError` such as a full disk with 1, an
    interrupt with 130, SIGTERM with 143.
    """
    signal.signal(signal.SIGTERM, _end)
    for stream in (sys.stdout, sys.stderr):
        # The encoding of the terminal may lack characters of class names.
        if isinstance(stream, io.TextIOWrapper):
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
    """Exits by an exception, so that unfinished files are removed on the way."""
    sys.exit(128 + number)


def printable(text: str) -> str:
    """Replaces characters that could control the terminal: names of files and classes may be untrusted."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
