"""A folder or a zip with one folder of pictures per class."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from stat import S_ISREG

from jaxcnn.data.decoding import is_picture
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.pictures import MAX_BYTES, TooLargeError
from jaxcnn.data.source import Source, make_key, make_key_of_text
from jaxcnn.data.sources.archive import Archive
from jaxcnn.data.sources.class_folders import open_class_folders
from jaxcnn.data.sources.folder_key import Identity, read_key, write_key
from jaxcnn.data.sources.tree import Tree, list_folder
from jaxcnn.data.texts import Texts
from jaxcnn.errors import UserError
from jaxcnn.paths import named_path, readable


def folder_source(source: str, *, cache_dir: Path | None = None) -> Source:
    """Finds a folder or zip of `CLASS/picture.jpg`, or of `train/CLASS/picture.jpg` and `val/CLASS/picture.jpg`.

    Pictures may lie deeper inside their class folder, and everything may lie in one outer folder. Class indices follow
    the sorted names of the class folders, in Unicode's composed form. The key of a folder depends on the names, sizes
    and times of its files.

    Args:
      source: the path.
      cache_dir: where the key of a large folder is kept, so that the next start need not look at every file.

    Raises:
      UserError: the path does not exist, or a file or folder in it cannot be read.
    """
    path = find_path(source)
    # The same pictures have the same key however their path is written.
    path = path.resolve()
    if path.is_dir():
        return _folder_source(path, None if cache_dir is None else cache_dir / f"{make_key(path)}.json")
    stat = path.stat()
    return Source(key=make_key(path, stat.st_size, stat.st_mtime_ns), open=lambda: _open_zip(path))


def find_path(source: str) -> Path:
    """Returns the path of a folder or zip; raises UserError if it does not exist."""
    path = named_path(source, option="data.source") if source else None
    if path is None or not path.exists():
        missing = f"data.source {source!r} does not exist" if source else "data.source is not set"
        raise UserError(f"{missing}; give a folder, a zip, tar or Parquet files, digits, tiny_imagenet or tfds:NAME")
    return path


def _folder_source(path: Path, record: Path | None) -> Source:
    if record is not None and (key := read_key(record, path)) is not None:
        return Source(key=key, open=lambda: _folder_source(path, None).open())
    # Every file is looked at: one changed picture makes another key, and so another cache entry.
    listed = time.time()
    files, folders = list_folder(path)
    key = make_key_of_text(path, _describe(path, _identify(path, files), folders))
    if record is not None:
        write_key(record, path, key, files=files, folders=folders, listed=listed)
    return Source(key=key, open=lambda: _open_folder(path, files, folders))


def _identify(path: Path, files: Iterable[str]) -> Iterator[Identity]:
    """Yields name, size and time of the files in a folder."""
    for name in files:
        try:
            stat = os.stat(f"{path}/{name}")
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}; repair or remove it") from error
        if not S_ISREG(stat.st_mode):
            raise UserError(f"{name} in {path} is a pipe or a device, not a file; remove it")
        yield name, stat.st_size, stat.st_mtime_ns


def _describe(path: Path, files: Iterable[Identity], folders: Sequence[str]) -> Iterator[str]:
    """Yields the text of `(str(path), files, folders)` in parts, without keeping the files."""
    yield f"({str(path)!r}, ["
    for number, identity in enumerate(files):
        yield f", {identity!r}" if number else repr(identity)
    yield f"], {folders!r})"


def _open_folder(path: Path, files: Texts, folders: list[str]) -> EncodedDataset:
    tree = Tree.from_sorted(
        files,
        map(PurePosixPath, folders),
        where=str(path),
        read=lambda file: read_file(path / file),
        begins_like_picture=lambda file: begins_like_picture(path / file),
    )
    return open_class_folders(tree, name=readable(path.name))


def _open_zip(path: Path) -> EncodedDataset:
    archive = Archive(path)
    tree = Tree.from_paths(archive.files, archive.folders, where=str(path), read=archive.read)
    return open_class_folders(tree, name=readable(path.stem))


def read_file(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
      UserError: it cannot be read, or is larger than `MAX_BYTES`.
    """
    with _opened(path) as (file, size):
        if size > MAX_BYTES:
            raise TooLargeError(f"{path} is too large for a picture: {size:,} bytes; remove it")
        return file.read()


def begins_like_picture(path: Path) -> bool:
    """Returns whether a file begins like a picture, without reading all of it: films are large.

    Raises:
      UserError: it cannot be read.
    """
    with _opened(path) as (file, size):
        return size <= MAX_BYTES and is_picture(file)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """Opens a file, and yields it with its size.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            # The size of the open file: the path may meanwhile lead to another.
            yield file, os.fstat(file.fileno()).st_size
    # No system takes a name with a null character.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}; repair or remove it") from error


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file, without waiting until somebody writes to it if it is a pipe."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(descriptor, True)  # What somebody writes is waited for.
    return descriptor
