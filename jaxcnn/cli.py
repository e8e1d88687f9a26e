"""Command lines from dataclasses (by tyro), with every mistake of the user's told in one line."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Sequence
from unittest import mock

import tyro

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


def parse[T](default: T, arguments: Sequence[str], *, prog: str, description: str | None = None) -> T:
    """Changes the fields of the dataclass `default` by options such as `--data.source PATH`.

    Raises:
      UserError: an option that does not exist, or a value of the wrong kind.
    """
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages), _wide_unless_help(arguments):
        try:
            value, unknown = tyro.cli(
                type(default),
                default=default,
                args=list(arguments),
                prog=prog,
                description=description,
                use_underscores=True,
                return_unknown_args=True,
            )
        except SystemExit as stop:
            if stop.code == 0:
                raise
            raise UserError(_one_line(messages.getvalue())) from None
    if unknown:
        raise UserError(_unknown(unknown[0], default, prog))
    return value


def peek[T](arguments: Sequence[str], option: str, default: T) -> str | T:
    """The value of an option that the defaults of others depend on, before all are parsed.

    One without a value is taken as not given: `parse` says what is wrong with it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    spellings = {f"--{option}", f"--{option.replace('_', '-')}"}
    parser.add_argument(*spellings, dest="value", nargs="?", default=default, const=default)
    value: str | T = parser.parse_known_args(arguments)[0].value
    return value


def _wide_unless_help(arguments: Sequence[str]) -> contextlib.AbstractContextManager[object]:
    """Keeps tyro from wrapping an error, so that it can be told in one line."""
    if {"-h", "--help"} & set(arguments):
        return contextlib.nullcontext()
    return mock.patch.dict(os.environ, COLUMNS="2000")


def _one_line(box: str) -> str:
    """The sentence inside the box that tyro draws around an error."""
    lines = [line.strip(" │╭╰╮╯─-") for line in box.splitlines()]
    lines = [line for line in lines if line][1:]  # the first is the box's title
    end = next((i for i, line in enumerate(lines) if line.startswith(("Argument helptext", "For full helptext"))), None)
    return re.sub(r"\[/?bold\]", "", " ".join(lines[:end]))  # which tyro forgets to render in a few


def _unknown(argument: str, default: object, prog: str) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} belongs to no option; see {prog} --help"
    *groups, _ = argument.lstrip("-").split("=")[0].split(".")
    options = _options(default)
    same_group = [each for each in options if each.split(".")[:-1] == groups] or options
    return f"there is no option {argument}; there are: {', '.join('--' + each for each in same_group)}"


def _options(value: object, prefix: str = "") -> list[str]:
    """Names of all options of a dataclass, nested ones with dots."""
    names: list[str] = []
    for each in dataclasses.fields(value):  # type: ignore[arg-type]
        inner = getattr(value, each.name)
        if dataclasses.is_dataclass(inner):
            unnamed = any(getattr(mark, "name", None) == "" for mark in getattr(each.type, "__metadata__", ()))
            names += _options(inner, prefix if unnamed else f"{prefix}{each.name}.")
        else:
            names.append(prefix + each.name)
    return names
