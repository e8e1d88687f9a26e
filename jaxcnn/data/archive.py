"""Reading zip files in place: nothing is ever extracted."""

import contextlib
import zipfile
from pathlib import Path, PurePosixPath

from jaxcnn.errors import UserError

MAX_BYTES = 2**28
"""Larger members are refused: they are no pictures, and would be read into memory whole."""

ENCRYPTED = 1
"""The flag of members that need a password."""

UTF_8 = 1 << 11
"""The flag of members whose names are in UTF-8; macOS writes such names without it."""


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
        self._members = {self._inside(_name(info)): info for info in self._zip.infolist()}
        self.files = [inside for inside, info in self._members.items() if not _name(info).endswith("/")]
        self.folders = [inside for inside, info in self._members.items() if _name(info).endswith("/")]

    def _inside(self, name: str) -> PurePosixPath:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{self.path} has a member that points out of the zip, {name!r}; remove it")
        return inside

    def read(self, inside: PurePosixPath) -> bytes:
        """The bytes of one file; may be called from several threads.

        Raises:
          UserError: damaged, encrypted, compressed in a way Python cannot read, or larger than `MAX_BYTES`.
        """
        info, name = self._members[inside], str(inside)
        where = f"{name if name.isprintable() else repr(name)} in {self.path}"
        if info.file_size > MAX_BYTES:
            raise UserError(f"{where} is too large for a picture: {info.file_size:,} bytes; remove it")
        if info.flag_bits & ENCRYPTED:
            raise UserError(f"{self.path} is encrypted; make it again without a password")
        try:
            return self._zip.read(info)
        except RuntimeError as error:  # such as Deflate64, which Windows takes for files of more than 2 GB
            raise UserError(f"{self.path} cannot be read ({error}); make it again with Deflate") from error
        except Exception as error:  # of each decompressor its own, and of names
            raise UserError(f"{where} is damaged ({error}); copy or download it again") from error


def _name(info: zipfile.ZipInfo) -> str:
    """The name of a member with a slash between folders, and at the end of a folder."""
    name = info.filename
    if not info.flag_bits & UTF_8:
        with contextlib.suppress(UnicodeError):  # it is of code page 437, as it should be
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")  # some Windows programs write backslashes
