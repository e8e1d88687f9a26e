"""The files and folders inside a folder or a zip."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from jaxcnn.data.sources.pictures import FORMATS
from jaxcnn.errors import UserError

JUNK = ("thumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "icon\r", "@eadir", "#recycle")
"""Names in lower case that Windows, macOS and Synology's disk stations leave behind."""


def list_folder(path: Path) -> tuple[list[str], list[str]]:
    """Lists the files and the folders below a folder by their relative paths, sorted, without junk; follows links.

    Raises:
      UserError: a folder cannot be read, or a link leads back to a folder that contains it.
    """
    files: list[str] = []  # Strings: `Path` objects take many times as long to make and to sort
    folders: list[str] = []

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}; check its permissions") from error

    for here, subfolders, members in path.walk(on_error=refuse, follow_symlinks=True):
        # A circle of links would never end.
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise UserError(f"{here} is a link to a folder that contains it; remove it")
        # Changed in place: `walk` then skips what was removed.
        subfolders[:] = [name for name in subfolders if not is_junk(name)]
        inside = "" if here == path else f"{here.relative_to(path).as_posix()}/"
        folders += [inside + name for name in subfolders]
        files += [inside + name for name in members if not is_junk(name)]
    return sorted(files, key=_parts), sorted(folders)


def _parts(inside: str) -> list[str]:
    """Returns the sort key of a path, which orders as `PurePosixPath` does."""
    return inside.split("/")


def is_junk(name: str) -> bool:
    """Returns whether a file or folder is ignored: hidden, left behind by a system, or Tiny ImageNet's boxes."""
    return name.startswith(".") or name.lower() in JUNK or name.endswith("_boxes.txt")


def has_picture_ending(name: str) -> bool:
    """Returns whether the name of a file has the ending of a picture."""
    return Image.registered_extensions().get(PurePosixPath(name).suffix.lower()) in FORMATS


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The content of a folder or zip.

    Attributes:
      where: names the folder or zip in error messages.
      read: returns the content of a file.
      folders: for each folder, the names of the folders directly in it.
      files: for each folder, all files below it, sorted.
    """

    where: str
    read: Callable[[PurePosixPath], bytes]
    folders: dict[PurePosixPath, set[str]]
    files: dict[PurePosixPath, list[PurePosixPath]]

    @staticmethod
    def from_paths(
        files: Iterable[PurePosixPath],
        folders: Iterable[PurePosixPath],
        *,
        where: str,
        read: Callable[[PurePosixPath], bytes],
    ) -> "Tree":
        """Builds the tree, without junk; `folders` need only contain the empty ones."""
        tree = Tree(where=where, read=read, folders={PurePosixPath(): set()}, files={PurePosixPath(): []})
        for path in folders:
            tree._add_folder(path)
        # Sorted once here, so that the files of every folder are in the same order on all systems.
        for path in sorted(files):
            if not any(map(is_junk, path.parts)):
                tree._add_folder(path.parent)
                for folder in path.parents:
                    tree.files[folder].append(path)
        return tree

    def _add_folder(self, path: PurePosixPath) -> None:
        if path in self.folders or any(map(is_junk, path.parts)):
            return
        # From the outermost inwards, as each is entered in its parent.
        for folder in (*reversed(path.parents), path):
            if folder not in self.folders:
                self.folders[folder.parent].add(folder.name)
                self.folders[folder], self.files[folder] = set(), []

    def pictures(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """Returns the files below a folder whose names have the ending of a picture."""
        return [path for path in self.files[folder] if has_picture_ending(path.name)]

    def loose_pictures(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """Returns the pictures that lie directly in a folder."""
        return [path for path in self.pictures(folder) if path.parent == folder]
