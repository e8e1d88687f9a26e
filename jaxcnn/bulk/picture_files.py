"""Finds the pictures that a command line names: files, folders, zips, patterns, and names on standard input."""

import glob
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from jaxcnn.data.sources.archive import Archive
from jaxcnn.data.sources.folder import begins_like_picture, read_file
from jaxcnn.data.sources.tree import has_picture_ending, is_junk, is_raw, list_folder
from jaxcnn.errors import UserError
from jaxcnn.paths import named_path

STANDARD_INPUT = "-"
"""The argument that stands for names on standard input, one a line."""

OPEN_ZIPS = 32
"""Most zips that are open at once: systems limit open files, some to 256."""

type OpenZip = Callable[[Path], Archive]


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file that may be a picture.

    Attributes:
      name: how messages and results call it: its path, or the path of its zip followed by the path inside.
      archive: opens the zip that it is in; None for a file on disk.
      inside: its path in the zip.
      expected: whether it has to be a picture, because it was named or its name has the ending of one. Other files are
        passed over if they are something else.
    """

    name: str
    archive: Callable[[], Archive] | None = None
    inside: PurePosixPath | None = None
    expected: bool = True

    @property
    def is_on_disk(self) -> bool:
        """Whether the name is the path of a file."""
        return self.archive is None

    def read(self) -> bytes:
        """Returns the content of the file; may be called from several threads.

        Raises:
          UserError: it cannot be read, is too large for a picture, or is something else, such as a raw file, whose
            thumbnail does not count.
        """
        if is_raw(self.name):
            raise UserError(f"{self.name} is a raw file of a camera; make a JPEG of it")
        if self.archive is None or self.inside is None:
            path = Path(self.name)
            if not self.expected and path.is_file() and not begins_like_picture(path):
                raise UserError(f"{path} is no picture")
            return read_file(path)
        archive = self.archive()
        try:
            return archive.read(self.inside)
        except KeyError as error:
            raise UserError(f"{self.inside} is no longer in {archive.path}; run the same command again") from error


def find_pictures(arguments: Sequence[str], lines: Iterable[str]) -> tuple[Iterator[PictureFile], int | None]:
    """Finds the pictures that arguments stand for, each once, in the order of the arguments.

    Args:
      arguments: paths of files, folders and zips, patterns such as `photos/**/*.jpg`, or `-` for `lines`. Folders and
        zips stand for all files below them, sorted by path, except the hidden ones and what systems leave behind.
      lines: the lines of standard input, read only as the files are asked for.

    Returns:
      The files, and how many there are; None if that is not known before they have all been read.

    Raises:
      UserError: an argument names nothing, or there are no files.
    """
    open_zip: OpenZip = lru_cache(OPEN_ZIPS)(Archive)
    groups: list[Iterable[PictureFile]] = []
    for argument in arguments:
        groups.append(_named_by(lines) if argument == STANDARD_INPUT else list(_expand(argument, open_zip)))
    if STANDARD_INPUT in arguments:
        return _once(file for group in groups for file in group), None
    files = list(_once(file for group in groups for file in group))
    if not files:
        raise UserError(f"there are no files in {', '.join(arguments)}; give pictures, or folders or zips of pictures")
    return iter(files), len(files)


def _named_by(lines: Iterable[str]) -> Iterator[PictureFile]:
    """Yields the files that lines name, as `find` prints them; empty lines name nothing.

    Raises:
      UserError: the names are separated by null characters.
    """
    if isinstance(lines, io.TextIOWrapper):
        # As in arguments, names may hold bytes that are not UTF-8, and carriage returns.
        lines.reconfigure(errors="surrogateescape", newline="\n")
    for line in lines:
        if "\0" in line:
            raise UserError(
                "names on standard input are separated by null characters; give one a line, without -print0"
            )
        if name := line.rstrip("\r\n"):
            yield PictureFile(name)


def _expand(argument: str, open_zip: OpenZip) -> Iterator[PictureFile]:
    """Yields the files that a path or a pattern stands for."""
    path = named_path(argument, option="a picture's name")
    # A link that leads nowhere is listed with the files that cannot be read, also in a folder.
    matches = [str(path)] if os.path.lexists(path) else sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise UserError(f"{argument} does not exist; give a picture, a folder, a zip or a pattern")
    for match in matches:
        yield from _below(Path(match), open_zip)


def _below(path: Path, open_zip: OpenZip) -> Iterator[PictureFile]:
    """Yields a file, or those in a folder or a zip."""
    if os.path.isdir(path):
        folder = str(path)
        files, _ = list_folder(path)
        yield from (PictureFile(f"{folder}/{file}", expected=has_picture_ending(file)) for file in files)
    elif path.suffix.lower() == ".zip":
        reopen = partial(open_zip, path)
        for inside in sorted(reopen().files):
            if not any(map(is_junk, inside.parts)):
                yield PictureFile(f"{path}/{inside}", reopen, inside, has_picture_ending(inside.name))
    else:
        yield PictureFile(str(path))


def _once(files: Iterable[PictureFile]) -> Iterator[PictureFile]:
    """Yields every file once, though several arguments may stand for it."""
    seen: set[str] = set()
    for file in files:
        if file.name not in seen:
            seen.add(file.name)
            yield file
