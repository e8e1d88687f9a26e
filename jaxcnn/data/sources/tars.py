"""Tar files in the layout of WebDataset: pictures beside files with their classes."""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.pictures import MAX_BYTES, Picture, TooLargeError
from jaxcnn.data.source import Source, make_key
from jaxcnn.data.sources.class_folders import TRAIN, VALIDATION
from jaxcnn.data.sources.tree import has_picture_ending, is_junk
from jaxcnn.data.texts import Texts
from jaxcnn.errors import UserError
from jaxcnn.paths import readable

CLASSES = "classes.txt"
"""The file beside the tar files that names the classes, one on each line; without it they are called 0, 1, ..."""

LABEL = "cls"
"""Ending of the files with the index of a class, as text."""


def find_tars(path: Path) -> list[Path]:
    """Returns the tar files that a path means: itself, or all in a folder; empty if it means something else.

    A folder with other folders in it has class folders, whatever lies beside them.

    Raises:
      UserError: the folder cannot be read.
    """
    if path.suffix.lower() == ".tar" and path.is_file():
        return [path.resolve()]
    if not path.is_dir():
        return []
    try:
        inside = [file for file in path.resolve().iterdir() if not is_junk(file.name)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if any(file.is_dir() for file in inside):
        return []
    return sorted(file for file in inside if file.suffix.lower() == ".tar")


def tar_source(path: Path, tars: Sequence[Path]) -> Source:
    """Finds the pictures of tar files in the layout of WebDataset (https://github.com/webdataset/webdataset).

    The files of an example follow each other and differ in what follows the first dot of their names, such as
    `0001.jpg` and `0001.cls`. Files whose names contain a word for validation, as `pets-val-000.tar`, are validation
    pictures if others contain one for training.

    Args:
      path: the tar file, or the folder with them.
      tars: the tar files.

    Raises:
      UserError: a file cannot be read.
    """
    try:
        files = [*tars, *(file for file in (_classes_file(path),) if file.exists())]
        identity = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}; repair or remove it") from error
    return Source(key=make_key(path.resolve(), identity), open=lambda: _open(path, tars))


def _open(path: Path, tars: Sequence[Path]) -> EncodedDataset:
    """Reads the tables of contents and the labels, but no pictures.

    Raises:
      UserError: a tar file or its layout is damaged, or there are no pictures.
    """
    train, validation = split_by_name(tars)
    splits = [TarPictures.find(files) for files in (train, validation)]
    if not len(splits[0]):
        raise UserError(f"{path} has no pictures with a .{LABEL} file beside each; see the layout of WebDataset")
    count = 1 + max(int(split.members["label"].max(initial=-1)) for split in splits)
    names = _read_names(_classes_file(path)) or [str(label) for label in range(count)]
    if count > len(names):
        raise UserError(f"{path} has pictures of class {count - 1}, but {CLASSES} names {len(names)}; add the others")
    return EncodedDataset(
        name=readable(path.stem),
        names=tuple(names),
        license="unknown",
        train=splits[0],
        validation=splits[1],
        passed_over=tuple(name for split in splits for name in split.passed_over),
    )


def _classes_file(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / CLASSES


def _read_names(path: Path) -> list[str]:
    """Returns the names of the classes; none if there is no such file."""
    if not path.exists():
        return []
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); save it in UTF-8") from error
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path} has {name!r} more than once; give every class its own name")
    return names


def split_by_name(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Returns the files for training and the files for validation, by the words in their names."""
    words = [set(re.split(r"[^a-z]+", file.stem.lower())) for file in files]
    train = [file for file, found in zip(files, words, strict=True) if found & {*TRAIN}]
    # The first word that occurs, so that `test` is left alone beside `val`.
    word = next((word for word in VALIDATION if any(word in found for found in words)), None)
    if not train or word is None:
        return train or list(files), []
    return train, [file for file, found in zip(files, words, strict=True) if word in found and not found & {*TRAIN}]


class Member(NamedTuple):
    """Where a picture lies in a tar file.

    Attributes:
      name: its name in it.
      start: its first byte.
      size: its bytes.
      label: its class index.
    """

    name: str
    start: int
    size: int
    label: int


MOST_CLASSES = 10**6
"""A label of this or more is taken for something else, such as a time: each class below it gets a name in memory."""

MEMBER = np.dtype([("tar", "<i4"), ("start", "<i8"), ("size", "<i8"), ("label", "<i4")])
"""A member without its name, with the position of its tar file among all."""


@dataclass(frozen=True, eq=False)
class TarPictures:
    """The pictures of one split, read in place when they are indexed.

    Attributes:
      tars: the tar files.
      names: the names of the pictures in them.
      members: where they lie, as `MEMBER`.
      passed_over: files with the class of no picture.
    """

    tars: Sequence[Path]
    names: Texts = field(repr=False)
    members: np.ndarray = field(repr=False)
    passed_over: list[str] = field(repr=False)

    @staticmethod
    def find(tars: Sequence[Path]) -> "TarPictures":
        """Lists the pictures of tar files.

        Raises:
          UserError: a file is damaged or compressed, or a picture has no class.
        """
        names, parts = Texts(), [np.empty(0, MEMBER)]
        passed_over: list[str] = []
        for number, tar in enumerate(tars):
            members, alone = _list_members(tar)
            passed_over += [f"{tar.name}/{name}" for name in alone]
            for member in members:
                names.append(member.name)
            parts.append(np.array([(number, *member[1:]) for member in members], MEMBER))
        return TarPictures(tars, names, np.concatenate(parts), passed_over)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int, /) -> Picture:
        """Returns a picture.

        Raises:
          UserError: it cannot be read.
        """
        number, start, size, label = self.members[index].item()
        name, tar = self.names[index], self.tars[number]
        where = f"{name} in {tar}"
        if size > MAX_BYTES:
            raise TooLargeError(f"{where} is too large for a picture: {size:,} bytes; remove it")
        try:
            with tar.open("rb") as file:
                file.seek(start)
                encoded = file.read(size)
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror}; repair or remove it") from error
        return Picture(where=where, encoded=encoded, label=label, file=f"{tar.name}/{name}")

    def listed(self) -> Iterator[tuple[str, int]]:
        """Yields the name of each picture behind that of its tar file, and its class index."""
        for name, number, label in zip(self.names, self.members["tar"], self.members["label"], strict=True):
            yield f"{self.tars[number].name}/{name}", int(label)


def _list_members(tar: Path) -> tuple[list[Member], list[str]]:
    """Lists the pictures of one tar file with their classes, and the files with the class of no picture."""
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in _list_files(archive, tar):
                path = PurePosixPath(info.name)
                stem, _, ending = path.name.partition(".")
                key = str(path.parent / stem)
                if ending.lower() == LABEL:
                    labels[key] = _read_label(archive, info, tar)
                elif key in pictures:
                    raise UserError(f"{tar} has two pictures for {key}, {pictures[key].name} and {info.name}")
                else:
                    pictures[key] = info
            _check_end(tar, archive.offset)
    except UserError:
        raise
    except Exception as error:  # tarfile raises many kinds of errors on damaged headers
        raise UserError(f"{tar} is not a complete, uncompressed tar file ({error}); make it again") from error
    for key in pictures:
        if key not in labels:
            raise UserError(f"{pictures[key].name} in {tar} has no class; add {key}.{LABEL} with its index")
    members = [Member(info.name, info.offset_data, info.size, labels[key]) for key, info in pictures.items()]
    return members, [f"{key}.{LABEL}" for key in labels if key not in pictures]


def _list_files(archive: tarfile.TarFile, tar: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the pictures and labels of a tar file, without junk.

    Raises:
      UserError: one of them is a link.
    """
    for info in archive:
        if info.size < 0:  # The next header would be the same one again, without end
            raise tarfile.ReadError("a size below 0")
        path = PurePosixPath(info.name)
        is_label = path.name.partition(".")[2].lower() == LABEL
        if any(map(is_junk, path.parts)) or not (is_label or has_picture_ending(path.name)):
            continue
        if info.islnk() and info.linkname == info.name:
            continue  # Tar was given the same file twice
        if info.issym() or info.islnk():
            raise UserError(f"{info.name} in {tar} is a link; make it again with tar --dereference --hard-dereference")
        if info.isfile():
            yield info


def _check_end(tar: Path, end: int) -> None:
    """Raises ReadError unless a tar file ends where its members do: tarfile stops without an error at a damaged one.

    Args:
      tar: the file.
      end: the first byte behind the members that tarfile has listed.
    """
    with tar.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        if rest != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut off at byte {end:,}")
        while rest := file.read(2**20):
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"more behind its end at byte {end:,}, such as another tar file")


def _read_label(archive: tarfile.TarFile, info: tarfile.TarInfo, tar: Path) -> int:
    file = archive.extractfile(info)
    assert file is not None
    text = file.read(100).decode(errors="replace").strip()
    if not text.isdecimal() or int(text) >= MOST_CLASSES:
        raise UserError(f"{info.name} in {tar} is {text[:20]!r}; it has to be the index of a class, such as 0")
    return int(text)
