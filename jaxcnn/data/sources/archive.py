"""Zip files, read in place: nothing is extracted."""

import bz2
import contextlib
import copy
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from jaxcnn.data.pictures import MAX_BYTES, TooLargeError
from jaxcnn.data.sources.tree import is_junk
from jaxcnn.errors import UserError

ENCRYPTED = 1
"""Flag of members that need a password."""

UTF_8 = 1 << 11
"""Flag of members whose names are in UTF-8; macOS writes UTF-8 without setting it."""


class Archive:
    """An open zip.

    Attributes:
      path: where the zip lies.
      files: paths inside the zip.
      folders: paths of the folders that the zip lists; many zips list only files.
    """

    def __init__(self, path: Path) -> None:
        """Reads the table of contents.

        Raises:
          UserError: the file cannot be read, is not a zip, is truncated, has a member outside the zip, or two different
            ones with the same path.
        """
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from error
        except Exception as error:  # zipfile raises many kinds of errors on a damaged table of contents
            raise UserError(
                f"{path} is neither a folder nor a complete zip ({error}); copy or download it again"
            ) from error
        self._members: dict[PurePosixPath, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            inside = self._inside(_name(info))
            self._check_known(inside, info)
            self._members[inside] = info
        self.files = [inside for inside, info in self._members.items() if not _name(info).endswith("/")]
        self.folders = [inside for inside, info in self._members.items() if _name(info).endswith("/")]

    def _inside(self, name: str) -> PurePosixPath:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{self.path} has a member that points out of the zip, {name!r}; remove it")
        return inside

    def _check_known(self, inside: PurePosixPath, info: zipfile.ZipInfo) -> None:
        """Raises UserError if another member has the same path, but another content."""
        known = self._members.get(inside, info)
        if (known.CRC, known.file_size) != (info.CRC, info.file_size) and not any(map(is_junk, inside.parts)):
            raise UserError(f"{self.path} has two members called {str(inside)!r} that differ; remove one of them")

    def read(self, inside: PurePosixPath) -> bytes:
        """Returns the content of a file; may be called from several threads.

        Raises:
          UserError: the member is damaged, encrypted or larger than `MAX_BYTES`, or Python cannot decompress it.
        """
        # Names come from the file, and may contain line breaks.
        info, name = self._members[inside], str(inside)
        where = f"{name if name.isprintable() else repr(name)} in {self.path}"
        if info.file_size > MAX_BYTES:
            raise TooLargeError(f"{where} is too large for a picture: {info.file_size:,} bytes; remove it")
        if info.flag_bits & ENCRYPTED:
            raise UserError(f"{self.path} is encrypted; make it again without a password")

        try:
            # No more than the table of contents says: without a limit, 1 GB of a bomb would be decompressed at once.
            if info.compress_type == zipfile.ZIP_BZIP2:
                return self._read_bzip2(info)
            with self._zip.open(info) as file:
                return file.read(info.file_size)
        except RuntimeError as error:  # Such as Deflate64, which Windows uses for files above 2 GB
            raise UserError(f"{self.path} cannot be decompressed ({error}); make it again with Deflate") from error
        except Exception as error:  # Each decompressor raises its own kinds, and so do damaged names
            raise UserError(f"{where} is damaged ({error}); copy or download it again") from error

    def _read_bzip2(self, info: zipfile.ZipInfo) -> bytes:
        """Returns the content of a member; zipfile has no limit for bzip2, whose bombs take 1 GB for a kilobyte."""
        # The compressed bytes are read as they are, without the checksum of the content.
        stored = copy.copy(info)
        stored.compress_type, stored.file_size = zipfile.ZIP_STORED, info.compress_size
        del stored.CRC
        with self._zip.open(stored) as file:
            content = bz2.BZ2Decompressor().decompress(file.read(MAX_BYTES), info.file_size)
        if zlib.crc32(content) != info.CRC:
            raise zipfile.BadZipFile("wrong checksum")
        return content


def _name(info: zipfile.ZipInfo) -> str:
    """Returns the name of a member with slashes between its folders, and at the end if it is a folder."""
    name = info.filename
    if not info.flag_bits & UTF_8:
        # Python decodes the name as code page 437, the format's default; kept unless the bytes are valid UTF-8.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")  # Some Windows programs write backslashes
