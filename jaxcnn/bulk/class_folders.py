"""Sorts pictures into one folder for each class, as links or copies."""

import filecmp
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

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
        self._copy = copy

    def place(self, file: PictureFile, name: str) -> None:
        """Lays a file into the folder of a class, unless it is there already.

        Raises:
          UserError: the folder cannot be written, or the system makes no links.
        """
        folder = self._folders[name]
        stem, ending = os.path.splitext(Path(file.name).name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Files of the same name come from different folders.
            number = 1
            while not self._lay(file, folder / f"{stem}{f'-{number}' if number > 1 else ''}{ending}"):
                number += 1
        except OSError as error:
            advice = "" if self._copy else ", or copy with --copy"
            reason = error.strerror or error
            raise UserError(
                f"{file.name} cannot be sorted into {folder}: {reason}; give another --sort_into{advice}"
            ) from error

    def _lay(self, file: PictureFile, target: Path) -> bool:
        """Makes the link or copy if its name is free; returns whether the file is there now."""
        if os.path.lexists(target):
            return _is_same(file, target)
        if file.is_on_disk and not self._copy:
            target.symlink_to(os.path.abspath(file.name))
            return True
        # A copy gets its name when all of it is on the disk: half of one would be taken for another picture.
        unfinished = target.with_name(f".{target.name}")
        if file.is_on_disk:
            shutil.copy2(file.name, unfinished)
        else:
            unfinished.write_bytes(file.read())
        sync(unfinished)
        unfinished.replace(target)
        return True


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a name for the folder of each class, without what a file system refuses.

    Classes that share a name ("crane") share a folder. Other names stay different, also where the case is ignored.
    """
    safe = {name: UNSAFE.sub("_", name) or "_" for name in names}
    count = Counter(folder.lower() for folder in safe.values())
    return {
        name: f"{folder} ({number})" if count[folder.lower()] > 1 else folder
        for number, (name, folder) in enumerate(safe.items())
    }


def _is_same(file: PictureFile, target: Path) -> bool:
    """Returns whether a link leads to the file, or a copy has its content."""
    if target.is_symlink():
        return file.is_on_disk and os.readlink(target) == os.path.abspath(file.name)
    if not file.is_on_disk:
        return target.read_bytes() == file.read()
    return filecmp.cmp(file.name, target, shallow=True)
