"""The files and folders inside a folder or a zip."""

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath

from PIL import Image

from jaxcnn.data import heif
from jaxcnn.data.pictures import FORMATS
from jaxcnn.data.texts import Texts
from jaxcnn.errors import UserError

JUNK = (
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
    "icon\r",
    "@eadir",
    "#recycle",
    "@recycle",
)
"""Names in lower case that Windows, Linux, macOS and network drives leave behind, some at the top of each disk."""

RAW = (".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".nef", ".nrw", ".pef", ".rw2", ".srw")
"""Endings of raw files of cameras that begin like TIFF, whose first picture is a thumbnail."""


def list_folder(path: Path) -> tuple[Texts, list[str]]:
    """Lists the files and the folders below a folder by their relative paths, without junk; follows links.

    Returns:
      The files in the order of `PurePosixPath`, which compares part by part, and the folders in the order of texts.

    Raises:
      UserError: a folder cannot be read, or a link leads back to a folder that contains it.
    """
    files, folders = Texts(), []
    # The rest of each folder from the outermost to the one that is listed: nested calls could become too many. Every
    # folder is sorted by itself, so that ten million paths need not be.
    rests = [_list_directly(path, "")]
    while rests:
        for inside, is_folder in rests[-1]:
            if is_folder:
                folders.append(inside)
                rests.append(_list_directly(path, inside))
                break
            files.append(inside)
        else:
            rests.pop()
    return files, sorted(folders)


def _list_directly(path: Path, folder: str) -> Iterator[tuple[str, bool]]:
    """Yields what lies directly in a folder inside a path, by name, and whether it is a folder itself."""
    here = path / folder
    # A circle of links would never end.
    if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
        raise UserError(f"{here} is a link to a folder that contains it; remove it")
    try:
        with os.scandir(here) as entries:
            found = sorted((entry.name, _is_folder(entry)) for entry in entries if not is_junk(entry.name))
    except OSError as error:
        raise UserError(f"{here} cannot be read: {error.strerror}; check its permissions") from error
    for name, is_folder in found:
        yield (f"{folder}/{name}" if folder else name), is_folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # Such as a link to itself
        return False


def is_junk(name: str) -> bool:
    """Returns whether a file or folder is ignored: hidden, left behind by a system, or Tiny ImageNet's boxes."""
    return name.startswith(".") or name.lower() in JUNK or name.endswith("_boxes.txt")


def has_picture_ending(name: str) -> bool:
    """Returns whether the name of a file has the ending of a picture."""
    ending = _ending(name)
    return ending in heif.ENDINGS or Image.registered_extensions().get(ending) in FORMATS


def is_raw(name: str) -> bool:
    """Returns whether the name of a file has the ending of a raw file of a camera; see `RAW`."""
    return _ending(name) in RAW


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The content of a folder or zip.

    Attributes:
      where: names the folder or zip in error messages.
      read: returns the content of a file.
      begins_like_picture: returns whether a file begins like a picture, if that takes less than to read it.
      paths: all files, in the order of `PurePosixPath`: those below a folder follow each other.
      folders: for each folder, the names of the folders directly in it.
      files: for each folder, the positions in `paths` of all files below it.
      direct: for each folder, the positions of the files directly in it.
    """

    where: str
    read: Callable[[PurePosixPath], bytes]
    paths: Texts
    begins_like_picture: Callable[[PurePosixPath], bool] | None = None
    folders: dict[PurePosixPath, set[str]] = field(default_factory=dict)
    files: dict[PurePosixPath, range] = field(default_factory=dict)
    direct: dict[PurePosixPath, list[range]] = field(default_factory=dict)

    @staticmethod
    def from_paths(
        files: Iterable[PurePosixPath],
        folders: Iterable[PurePosixPath],
        *,
        where: str,
        read: Callable[[PurePosixPath], bytes],
    ) -> "Tree":
        """Builds the tree, without junk; `folders` need only contain the empty ones."""
        # Sorted here, so that the files of every folder are in the same order on all systems.
        kept = (str(path) for path in sorted(files) if not any(map(is_junk, path.parts)))
        return Tree.from_sorted(Texts(kept), folders, where=where, read=read)

    @staticmethod
    def from_sorted(
        paths: Texts,
        folders: Iterable[PurePosixPath],
        *,
        where: str,
        read: Callable[[PurePosixPath], bytes],
        begins_like_picture: Callable[[PurePosixPath], bool] | None = None,
    ) -> "Tree":
        """Builds the tree from what `list_folder` returns; `folders` need only contain the empty ones."""
        tree = Tree(where=where, read=read, paths=paths, begins_like_picture=begins_like_picture)
        tree._add_folder(PurePosixPath())
        for path in folders:
            tree._add_folder(path)
        # Files in the same folder often follow each other.
        start = 0
        for parent, run in groupby(paths, key=lambda path: path.rpartition("/")[0]):
            folder, end = PurePosixPath(parent), start + sum(1 for _ in run)
            tree._add_folder(folder)
            tree.direct[folder].append(range(start, end))
            for outer in (folder, *folder.parents):
                tree.files[outer] = range(tree.files[outer].start if tree.files[outer] else start, end)
            start = end
        return tree

    def _add_folder(self, path: PurePosixPath) -> None:
        if path in self.folders or any(map(is_junk, path.parts)):
            return
        # From the outermost inwards, as each is entered in its parent.
        for folder in (*reversed(path.parents), path):
            if folder not in self.folders:
                if folder.name:
                    self.folders[folder.parent].add(folder.name)
                self.folders[folder], self.files[folder], self.direct[folder] = set(), range(0), []

    def has_pictures(self, folder: PurePosixPath) -> bool:
        """Returns whether a file below a folder has the ending of a picture."""
        return any(has_picture_ending(self.paths[place]) for place in self.files[folder])

    def loose_pictures(self, folder: PurePosixPath) -> list[str]:
        """Returns the files directly in a folder that have the ending of a picture."""
        paths = (self.paths[place] for places in self.direct[folder] for place in places)
        return [path for path in paths if has_picture_ending(path)]
