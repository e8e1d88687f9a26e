"""Paths that options name, and names of files as text."""

import os
import unicodedata
from pathlib import Path

from jaxcnn.errors import UserError

SHOWN = 200
"""Characters of a path that are repeated in a message."""


def named_path(text: str, *, option: str) -> Path:
    """The path that the value of an option stands for; `~` is the home directory. Nothing need be there.

    Raises:
      UserError: it is empty, begins with the `~` of nobody here, is too long, or cannot be looked at.
    """
    if not text:
        raise UserError(f"{option} is empty; give a path or leave the option out")
    shown = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{option} is {shown}, but there is no such home directory; write the path in full") from error
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{option} is {shown}, which cannot be read: {error.strerror}") from error
    return path


def check_outside_pictures(path: Path, *, option: str, source: str) -> None:
    """Raises a `UserError` if a folder to write into lies in that of the pictures, and would be taken for a class."""
    pictures = named_path(source, option="data.source") if source else None
    if pictures is not None and pictures.is_dir() and path.resolve().is_relative_to(pictures.resolve()):
        raise UserError(
            f"{option} {str(path)!r} lies in data.source {source!r}, among the pictures; give another --{option}"
        )


def readable(name: str) -> str:
    """The name of a file or folder as text: its bytes need not be UTF-8, what is written into a model must be."""
    return os.fsencode(name).decode("utf-8", "replace")


def composed(name: str) -> str:
    """A name as keyboards type it, with `ä` as one character; macOS writes two in some places."""
    return unicodedata.normalize("NFC", name)
