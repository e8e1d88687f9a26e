"""Reading zip files in place: nothing is ever extracted."""

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from jaxcnn.errors import UserError

MAX_BYTES = 2**28
"""Larger members are refused: they are no pictures, and would be read into memory whole."""


class Archive:
    """An open zip.

    Attributes:
      path: of the zip.
      files: paths inside the zip.
      folders: paths of the folders that have a member of their own; many zips have none.
    """

    def __init__(self, path: Path) -> None:
        """Reads the table of contents.

        Raises:
          UserError: no zip, one that is cut short, or a member that points out of the zip.
        """
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        except Exception as error:  # whatever a damaged table of contents leads to
            raise UserError(
                f"{path} is neither a folder nor a whole zip ({error}); copy or download it again"
            ) from error
        self._members = {self._inside(info.filename): info for info in self._zip.infolist()}
        self.files = [inside for inside, info in self._members.items() if not info.is_dir()]
        self.folders = [inside for inside, info in self._members.items() if info.is_dir()]

    def _inside(self, name: str) -> PurePosixPath:
        inside = PurePosixPath(name.replace("\\", "/"))  # some Windows programs write backslashes
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{self.path} has a member that points out of the zip, {name!r}; remove it")
        return inside

    def read(self, inside: PurePosixPath) -> bytes:
        """The bytes of one file; may be called from several threads.

        Raises:
          UserError: damaged, encrypted, compressed in a way Python cannot read, or larger than `MAX_BYTES`.
        """
        info = self._members[inside]
        if info.file_size > MAX_BYTES:
            raise UserError(f"{inside} in {self.path} is too large for a picture: {info.file_size:,} bytes; remove it")
        try:
            return self._zip.read(info)
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(f"{self.path} cannot be read ({error}); make it again without a password") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise UserError(f"{inside} in {self.path} is damaged ({error}); copy or download it again") from error
