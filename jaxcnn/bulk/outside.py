"""Refuses folders for results that lie among the pictures: the next run would classify what is in them."""

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path

from jaxcnn.bulk.class_folders import folder_names
from jaxcnn.bulk.heatmaps import Heatmaps
from jaxcnn.bulk.picture_files import STANDARD_INPUT
from jaxcnn.errors import UserError
from jaxcnn.paths import named_path

RESOLVES: tuple[Callable[[Path], str], ...] = (os.path.realpath, os.path.abspath)
"""Ways to compare paths: a link may lead into the pictures, or lie in them and lead out, and is followed."""


def check_outside(
    pictures: Sequence[str], *, heatmaps: Path | None, sort_into: Path | None, classes: Sequence[str]
) -> None:
    """Raises UserError if arguments also stand for what will be written.

    Args:
      pictures: the arguments, which name pictures.
      heatmaps: the folder of heatmaps, if any.
      sort_into: the folder to sort pictures into, if any.
      classes: names of the classes.
    """
    folders = list(folder_names(classes).values())
    for name in pictures:
        path = named_path(name, option="a picture's name")
        if name == STANDARD_INPUT or path.is_file():
            continue
        written = (("heatmaps", heatmaps, [_heatmap(path)]), ("sort_into", sort_into, _links(path, folders)))
        for option, folder, places in written:
            if folder is not None and _stands_for(path, folder, places):
                raise UserError(
                    f"{option} is {str(folder)!r}, which would put pictures among {name}; give a folder outside of the "
                    "pictures"
                )


def _heatmap(path: Path) -> Path:
    """Returns where below their folder the heatmaps of a folder or a pattern lie: an example, or another pattern."""
    return Heatmaps(Path()).path(str(path / "picture" if path.is_dir() else path))


def _links(path: Path, folders: Sequence[str]) -> list[Path]:
    """Returns where pictures of a folder or a pattern may be sorted into, given the folders of the classes."""
    if path.is_dir():
        # It contains the folders of all classes or of none, unless it is one of them.
        name = Path(os.path.realpath(path)).name
        folders = [name] if name in folders else folders[:1]
    return [Path(name, path.name) for name in folders]


def _stands_for(path: Path, folder: Path, places: Sequence[Path]) -> bool:
    """Returns whether a folder or a pattern stands for files at any of some places below a folder."""
    is_folder = path.is_dir()
    for resolve in RESOLVES:
        top, below = Path(resolve(path)), Path(resolve(folder))
        if any((below / place).is_relative_to(top) if is_folder else _matches(below / place, top) for place in places):
            return True
    return False


def _matches(place: Path, patterns: Path) -> bool:
    """Returns whether a pattern stands for a file at a place, or for a folder above it."""
    for part, pattern in zip_longest(place.parts, patterns.parts):
        if pattern in (None, "**"):
            return True
        if part is None or (part != pattern and not fnmatch(part, pattern)):
            return False
    return True
