"""The files and folders inside a folder or a zip."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from jaxcnn.data.picture import FORMATS
from jaxcnn.errors import UserError

JUNK = ("thumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "icon\r", "@eadir", "#recycle")
"""What Windows, macOS and Synology's disk stations leave behind, in lower case."""


def list_folder(path: Path) -> tuple[list[str], list[str]]:
    """The files and folders in a folder by their path inside, sorted, without hidden ones; links are followed.

    Raises:
      UserError: a folder cannot be read, or a link leads back to a folder that it lies in.
    """
    files: list[str] = []  # text: paths take many times as long to make and to sort
    folders: list[str] = []

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for here, subfolders, members in path.walk(on_error=refuse, follow_symlinks=True):
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise UserError(f"{here} is a link to a folder that it lies in; remove it")
        subfolders[:] = [name for name in subfolders if not is_junk(name)]
        inside = "" if here == path else f"{here.relative_to(path).as_posix()}/"
        folders += [inside + name for name in subfolders]
        files += [inside + name for name in members if not is_junk(name)]
    return sorted(files, key=_parts), sorted(folders)


def _parts(inside: str) -> list[str]:
    """What paths are sorted by."""
    return inside.split("/")


def is_junk(name: str) -> bool:
    """Whether a file or folder is passed over: hidden, left behind by a system, or Tiny ImageNet's boxes."""
    return name.startswith(".") or name.lower() in JUNK or name.endswith("_boxes.txt")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The inside of a folder or zip; for each folder, the names of the folders in it and all the files below it."""

    where: str
    read: Callable[[PurePosixPath], bytes]
    folders: dict[PurePosixPath, set[str]]
    files: dict[PurePosixPath, list[PurePosixPath]]

    @staticmethod
    def of(
        files: Iterable[PurePosixPath],
        folders: Iterable[PurePosixPath],
        *,
        where: str,
        read: Callable[[PurePosixPath], bytes],
    ) -> "Tree":
        """Builds the tree from paths; folders may be left out where files lie in them."""
        tree = Tree(where=where, read=read, folders={PurePosixPath(): set()}, files={PurePosixPath(): []})
        for path in folders:
            tree._add_folder(path)
        for path in sorted(files):
            if not any(map(is_junk, path.parts)):
                tree._add_folder(path.parent)
                for folder in path.parents:
                    tree.files[folder].append(path)
        return tree

    def _add_folder(self, path: PurePosixPath) -> None:
        if path in self.folders or any(map(is_junk, path.parts)):
            return
        for folder in (*reversed(path.parents), path):
            if folder not in self.folders:
                self.folders[folder.parent].add(folder.name)
                self.folders[folder], self.files[folder] = set(), []

    def pictures(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """The files below a folder that are pictures by their name; lists of classes often lie beside."""
        formats = Image.registered_extensions()
        return [path for path in self.files[folder] if formats.get(path.suffix.lower()) in FORMATS]

    def loose_pictures(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """Those of them that lie directly in it."""
        return [path for path in self.pictures(folder) if path.parent == folder]
