"""Sorts pictures into one folder for each class, as links or copies."""

import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jaxcnn.bulk.file_name import add_digest, fit_name
from jaxcnn.bulk.picture_files import PictureFile
from jaxcnn.disk import sync
from jaxcnn.errors import UserError

UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]$')
"""What a folder's name may not hold on some system, or would hide it."""


class ClassFolders:
    """The folders that pictures are sorted into."""

    def __init__(self, folder: Path, names: Sequence[str], *, copy: bool):
        """Opens the folders; they are created when the first picture comes.

        Args:
          folder: the folder above them.
          names: the classes.
          copy: lay copies instead of links; pictures in zips are always copied.
        """
        self._folders = {name: folder / safe for name, safe in folder_names(names).items()}
        self._places = {os.path.abspath(folder) for folder in self._folders.values()}
        self._copy = copy
        self._copies: set[str] = set()

    def place(self, file: PictureFile, name: str) -> None:
        """Lays a file into the folder of a class, unless it is there already.

        If several files have one name, all but the first get a part of the SHA-256 of their path in it.

        Raises:
          UserError: the folder cannot be written, the system makes no links, or the file lies in such a folder.
        """
        folder = self._folders[name]
        path = os.path.abspath(file.name)
        if os.path.dirname(path) in self._places:
            raise UserError(f"{file.name} lies where pictures are sorted into; leave it out")
        target = folder / fit_name(Path(path).name, path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A copy of this run is of another file, even if it has the same content.
            if str(target) in self._copies or (os.path.lexists(target) and not _is_same(file, target)):
                target = target.with_name(add_digest(target.name, path))
            self._lay(file, target)
            if self._copy or not file.is_on_disk:
                self._copies.add(str(target))
        except OSError as error:
            advice = "" if self._copy else ", or copy with --copy"
            reason = error.strerror or error
            raise UserError(
                f"{file.name} cannot be sorted into {folder}: {reason}; give another --sort_into{advice}"
            ) from error

    def _lay(self, file: PictureFile, target: Path) -> None:
        """Makes the link or copy, unless it is there already."""
        is_missing_copy = self._copy and target.is_symlink()
        if os.path.lexists(target) and _is_same(file, target) and not is_missing_copy:
            return
        # It gets its name when all of it is on the disk: half of a copy would be taken for another picture.
        unfinished = target.with_name(f".{target.name}")
        unfinished.unlink(missing_ok=True)  # What a killed process has left may be read-only.
        if not file.is_on_disk:
            unfinished.write_bytes(file.read())
            sync(unfinished)
        elif self._copy:
            # The copy of a read-only file is, too, and could not be opened to be synchronised.
            shutil.copyfile(file.name, unfinished)
            sync(unfinished)
            with suppress(OSError):  # Disks with FAT, such as most sticks, refuse permissions.
                shutil.copystat(file.name, unfinished)
        else:
            unfinished.symlink_to(os.path.abspath(file.name))
        unfinished.replace(target)


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a name for the folder of each class, without what a file system refuses.

    Classes that share a name ("crane") share a folder. Other names stay different, also where the case is ignored.
    """
    safe = {name: UNSAFE.sub("_", name) or "_" for name in names}
    count = Counter(folder.lower() for folder in safe.values())
    folders = {}
    for number, (name, folder) in enumerate(safe.items()):
        if count[folder.lower()] > 1:
            # Another class may be called "crane (1)".
            tried = (f"{folder} ({number}){'_' * times}" for times in itertools.count())
            folder = next(text for text in tried if text.lower() not in count)
        folders[name] = folder
    return folders


def _is_same(file: PictureFile, target: Path) -> bool:
    """Returns whether a link leads to the file, or a copy has its content."""
    if target.is_symlink():
        return file.is_on_disk and os.readlink(target) == os.path.abspath(file.name)
    return target.read_bytes() == file.read()
