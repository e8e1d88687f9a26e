"""Reading zip files in place: nothing is ever extracted."""

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from jaxcnn.errors import UserError

MAX_BYTES = 2**28
"""Larger members are refused: they are no pictures, and would be read into memory whole."""


@dataclass(frozen=True)
class Archive:
    """The files in a zip by their path inside; `read` may be called from several threads.

    Raises:
      UserError: no zip, a zip that is cut short or damaged, or a member outside the zip.
    """

    path: Path
    files: dict[PurePosixPath, zipfile.ZipInfo] = field(init=False)
    folders: frozenset[PurePosixPath] = field(init=False)
    _zip: zipfile.ZipFile = field(init=False)

    def __post_init__(self) -> None:
        try:
            file = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
            raise UserError(f"{self.path} is no whole zip file ({error}); copy or download it again") from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from error
        members = {self._member(info): info for info in file.infolist()}
        object.__setattr__(self, "_zip", file)
        object.__setattr__(self, "files", {path: info for path, info in members.items() if not info.is_dir()})
        object.__setattr__(self, "folders", frozenset(path for path, info in members.items() if info.is_dir()))

    def _member(self, info: zipfile.ZipInfo) -> PurePosixPath:
        path = PurePosixPath(info.filename.replace("\\", "/"))  # some Windows programs write backslashes
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{self.path} has a member that points out of the zip, {info.filename!r}; make it again")
        return path

    def read(self, path: PurePosixPath) -> bytes:
        """The bytes of one file.

        Raises:
          UserError: no such file, damaged, encrypted, compressed in a way Python cannot read, or larger than MAX_BYTES.
        """
        where = f"{path} in {self.path}"
        info = self.files.get(path)
        if info is None:
            raise UserError(f"{where} is missing; copy or download the zip again")
        if info.file_size > MAX_BYTES:
            raise UserError(f"{where} is too large for a picture: {info.file_size:,} bytes; remove it")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise UserError(f"{where} is damaged ({error}); copy or download the zip again") from error
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(f"{where} cannot be read ({error}); make the zip again without a password") from error
