"""Names of files that are made of pictures: the system takes them, and two pictures have two names."""

import hashlib
import os

DIGITS = 16
"""Hexadecimal digits of a path's SHA-256 that make a name unique."""

MOST_BYTES = 254
"""Most bytes of the name of a file: most systems take 255, and an unfinished file has a dot before its name."""

LONGEST_SUFFIX = 16
"""Most bytes of the suffix of a file, with its dot, that stays at the end of another name."""


def fit_name(name: str, path: str) -> str:
    """Returns a name for what is made of the file at a path: another one if it has more than `MOST_BYTES`."""
    return name if len(os.fsencode(name)) <= MOST_BYTES else add_digest(name, path)


def add_digest(name: str, path: str) -> str:
    """Returns a name with a part of the SHA-256 of a path in it, cut to `MOST_BYTES`."""
    stem, suffix = os.path.splitext(name)
    # What follows the last dot of a long name may be no suffix, and leave no room.
    if len(os.fsencode(suffix)) > LONGEST_SUFFIX:
        stem, suffix = name, ""
    ending = f"-{hashlib.sha256(os.fsencode(path)).hexdigest()[:DIGITS]}{suffix}"
    room = MOST_BYTES - len(os.fsencode(ending))
    # The cut may leave a part of a character.
    return (stem if len(os.fsencode(stem)) <= room else os.fsencode(stem)[:room].decode(errors="ignore")) + ending
