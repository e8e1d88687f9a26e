"""Paths from options, and file names as text."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from jaxcnn.errors import UserError

SHOWN = 200
"""Longest part of a path that a message shows, in characters."""


def named_path(text: str, *, option: str) -> Path:
    """Returns the path in the value of an option, with `~` expanded. It need not exist.

    Raises:
      UserError: the text is empty, too long or an address, its home directory does not exist, or the path cannot be
        accessed.
    """
    if not text:
        raise UserError(f"{option} is empty; give a path or leave the option out")
    shown = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
    if re.match("[A-Za-z][A-Za-z0-9+.-]+://", text):
        keep = "; --bucket keeps a copy of the workdir in a bucket" if option == "workdir" else ""
        raise UserError(f"{option} is {shown}, an address; give a path on a disk of this machine{keep}")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{option} is {shown}, but there is no such home directory; write the path in full") from error
    # A path that does not exist may be one to create.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # No system takes a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{option} is {shown}, which cannot be read: {reason}") from error
    return path


def check_address(text: str, *, option: str) -> str:
    """Returns the address of a folder in a bucket.

    Raises:
      UserError: it is not an address of this kind.
    """
    if not re.fullmatch("(s3|gs)://[A-Za-z0-9][A-Za-z0-9._-]+(/[^/]+)+/?", text):
        raise UserError(f"{option} is {text!r}; it must be s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    return text


def check_file(path: Path, *, option: str = "output", endings: Sequence[str] = ()) -> None:
    """Raises UserError if the value of an option is no file to write: a folder, or of another ending than those."""
    if endings and path.suffix not in endings:
        raise UserError(f"{option} is {str(path)!r}; it must end with {', '.join(endings[:-1])} or {endings[-1]}")
    if path.is_dir():
        raise UserError(f"{option} is {str(path)!r}, which is a folder; give the name of a file in it")


def check_output(path: Path, *, option: str = "output", endings: Sequence[str] = ()) -> None:
    """Checks a file that a command writes as a whole at its end, maybe hours later.

    Args:
      path: the file. The folders above it may be missing.
      option: what names it.
      endings: what its name may end with; anything if there are none.

    Raises:
      UserError: as `check_file`, or it could not be written.
    """
    check_file(path, option=option, endings=endings)
    # A folder that this user may not look into seems to be missing; then the one above it is refused.
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    reason = "" if os.access(folder, os.W_OK | os.X_OK) else "may not be written by this user"
    if reason := reason if folder.is_dir() else "is a file":
        raise UserError(f"{option} {str(path)!r} cannot be written: {folder} {reason}; give another --{option}")


def readable(name: str) -> str:
    """Returns the name of a file or folder with what is not UTF-8 replaced, as models and cards require."""
    return os.fsencode(name).decode("utf-8", "replace")


def composed(name: str) -> str:
    """Returns a name in Unicode's composed form, with `ä` as one character; macOS writes two in some places."""
    return unicodedata.normalize("NFC", name)
