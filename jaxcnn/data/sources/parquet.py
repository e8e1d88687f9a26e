"""Parquet files as Hugging Face's library `datasets` writes them: pictures and classes in columns."""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.pictures import MAX_BYTES, Picture, TooLargeError
from jaxcnn.data.source import Source, make_key
from jaxcnn.data.sources.tars import MOST_CLASSES, split_by_name
from jaxcnn.data.sources.tree import is_junk
from jaxcnn.errors import UserError
from jaxcnn.paths import readable

KEPT = 2
"""Row groups of a split that are in memory at once: threads that read in order need the end of one and the next."""


def find_parquet(path: Path) -> list[Path]:
    """Returns the Parquet files that a path means: itself, or all in a folder or in its only folder, `data`.

    The list is empty if the path means something else: a folder with other folders in it has class folders.

    Raises:
      UserError: a folder cannot be read.
    """
    if path.suffix.lower() == ".parquet" and path.is_file():
        return [path.resolve()]
    if not path.is_dir():
        return []
    try:
        inside = _list_without_junk(path.resolve())
        folders = [file for file in inside if file.is_dir()]
        if [folder.name for folder in folders] == ["data"]:
            inside = _list_without_junk(folders[0])
            folders = [file for file in inside if file.is_dir()]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}; check its permissions") from error
    # A link to nothing is one of them, and refused later: without it, examples would be missing.
    return [] if folders else sorted(file for file in inside if file.suffix.lower() == ".parquet")


def _list_without_junk(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if not is_junk(file.name)]


def parquet_source(path: Path, files: Sequence[Path]) -> Source:
    """Finds the pictures of Parquet files in the layout of `datasets` (https://huggingface.co/docs/datasets).

    A row has a picture as a struct of `bytes` and `path`, and the index of its class. The names of the classes are in
    the files' metadata. The splits follow from the names of the files, as for tar files.

    Args:
      path: the file, or the folder with them.
      files: the Parquet files.

    Raises:
      UserError: a file cannot be read.
    """
    try:
        identity = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}; repair or remove it") from error
    return Source(key=make_key(path.resolve(), identity), open=lambda: _open(path, files))


def _open(path: Path, files: Sequence[Path]) -> EncodedDataset:
    """Reads the metadata and the labels, but no pictures.

    Raises:
      UserError: pyarrow is missing, or a file is damaged or has other columns.
    """
    columns = Columns.read(files[0])
    for file in files[1:]:
        if Columns.read(file) != columns:
            raise UserError(f"{file} has other columns or classes than {files[0].name}; write both from one data set")
    train, validation = (ParquetPictures.find(part, columns) for part in split_by_name(files))
    if not len(train):
        raise UserError(f"{path} has no rows for training; see the layout of Hugging Face's datasets")
    count = 1 + max(int(split.labels.max(initial=-1)) for split in (train, validation))
    return EncodedDataset(
        name=readable(path.stem if path.is_file() else path.name),
        names=columns.names or tuple(str(label) for label in range(count)),
        license=columns.license or "unknown",
        train=train,
        validation=validation,
    )


@dataclass(frozen=True)
class Columns:
    """What the schema of a file says.

    Attributes:
      image: name of the column of pictures.
      label: name of the column of class indices.
      names: class names; empty if the file does not have them.
      license: terms of use; empty if the file does not have them.
    """

    image: str
    label: str
    names: tuple[str, ...]
    license: str

    @staticmethod
    def read(file: Path) -> "Columns":
        """Reads the schema of a file and the features that `datasets` has recorded in it.

        Raises:
          UserError: the file is damaged, or has no column of pictures or of classes.
        """
        arrow = _import_arrow()
        schema = _open_file(file).schema_arrow
        info = _read_info(schema)
        features = _mapping(info.get("features"))
        image = _find_column(file, schema.names, features, kind="Image", name="image")
        label = _find_column(file, schema.names, features, kind="ClassLabel", name="label")
        # What is in the columns.
        found = schema.field(image).type
        if not (arrow.types.is_struct(found) and found.get_field_index("bytes") >= 0):
            raise UserError(
                f"column {image} of {file} is {found}, not a struct with bytes; write it with datasets.Image"
            )
        if not arrow.types.is_integer(schema.field(label).type):
            raise UserError(
                f"column {label} of {file} is {schema.field(label).type}, not the index of a class; write it with "
                "datasets.ClassLabel"
            )
        listed = _mapping(features.get(label)).get("names")
        names = tuple(map(str, listed)) if isinstance(listed, list) else ()
        for name, count in Counter(names).items():
            if count > 1:
                raise UserError(f"{file} has the class {name!r} more than once; give every class its own name")
        return Columns(image, label, names, str(info.get("license") or ""))


def _read_info(schema: Any) -> dict[str, Any]:
    """Returns what `datasets` has recorded about a file; empty if it has not written it."""
    try:
        return _mapping(_mapping(json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))).get("info"))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    """Returns a JSON value if it is an object, else an empty one: the file may be untrusted."""
    return value if isinstance(value, dict) else {}


def _find_column(file: Path, columns: Sequence[str], features: dict[str, Any], *, kind: str, name: str) -> str:
    """Returns the column of this name, or else the only one whose feature is of this kind."""
    if name in columns:
        return name
    found = [
        column for column, feature in features.items() if column in columns and _mapping(feature).get("_type") == kind
    ]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{file} has no column {name!r}, but {', '.join(columns)}; rename the one that is meant to {name!r}"
    )


@dataclass(frozen=True)
class RowGroup:
    """A part of a Parquet file that is read as a whole.

    Attributes:
      file: the Parquet file.
      index: which of its parts.
      start: its first row in the file.
    """

    file: Path
    index: int
    start: int


@dataclass(frozen=True, eq=False)
class ParquetPictures:
    """The pictures of one split. Row groups are read when one of their pictures is indexed.

    Attributes:
      groups: the row groups.
      starts: position in the split of the first row of each group.
      labels: class index of each picture, int32; -1 if it has none.
      image: name of the column of pictures.
    """

    groups: list[RowGroup] = field(repr=False)
    starts: list[int] = field(repr=False)
    labels: Int32[np.ndarray, " rows"] = field(repr=False)
    image: str
    _lock: AbstractContextManager[bool] = field(default_factory=threading.Lock, repr=False)
    _read: dict[int, Any] = field(default_factory=dict, repr=False)
    _opened: dict[Path, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def find(files: Sequence[Path], columns: Columns) -> "ParquetPictures":
        """Lists the row groups of files and reads the classes of all rows.

        Raises:
          UserError: a file is damaged, or has a class without a name.
        """
        groups: list[RowGroup] = []
        starts, labels, count = [], [np.empty(0, np.int32)], 0
        for file in files:
            start, opened = 0, _open_file(file)
            for index in range(opened.metadata.num_row_groups):
                found = _read_labels(opened, RowGroup(file, index, start), columns)
                groups.append(RowGroup(file, index, start))
                starts.append(count)
                labels.append(found)
                start, count = start + len(found), count + len(found)
        return ParquetPictures(groups, starts, np.concatenate(labels), columns.image)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Picture:
        """Returns a picture.

        Raises:
          UserError: it cannot be read, or its row has no picture.
        """
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        group, inside = self.groups[number], int(index) - self.starts[number]
        where = f"row {group.start + inside} of {group.file}"
        value = self._read_group(number)[inside].as_py() or {}
        encoded, path = value.get("bytes"), value.get("path")
        if encoded is None:
            hint = f", only the path {readable(path)}" if path else ""
            raise UserError(f"{where} has no picture{hint}; write the file again with the pictures in it")
        if len(encoded) > MAX_BYTES:
            raise TooLargeError(f"{where} is too large for a picture: {len(encoded):,} bytes; remove it")
        file = f"{group.file.name}/{group.start + inside}"
        return Picture(where=where, encoded=encoded, label=int(self.labels[index]), file=file)

    def listed(self) -> list[tuple[str, int]]:
        """Returns the file and row of each picture, and its class index; -1 for a row without a class."""
        ends = [*self.starts[1:], len(self)]
        files = [
            f"{group.file.name}/{group.start + row}"
            for group, start, end in zip(self.groups, self.starts, ends, strict=True)
            for row in range(end - start)
        ]
        return list(zip(files, self.labels.tolist(), strict=True))

    def _read_group(self, number: int) -> Any:
        """Returns the column of pictures of a row group, which stays in memory while it is one of the last."""
        group = self.groups[number]
        with self._lock:
            if number not in self._read:
                while len(self._read) >= KEPT:
                    del self._read[next(iter(self._read))]
                self._read[number] = _read_column(self._open(group.file), group, self.image)
            return self._read[number]

    def _open(self, file: Path) -> Any:
        """Opens a file, unless it is the one that was opened last: it describes each of thousands of row groups."""
        if file not in self._opened:
            self._opened.clear()
            self._opened[file] = _open_file(file)
        return self._opened[file]


def _read_labels(opened: Any, group: RowGroup, columns: Columns) -> Int32[np.ndarray, " rows"]:
    """Returns the class index of each row of a row group of an open file, -1 for a row without a class."""
    labels = np.array(_read_column(opened, group, columns.label).fill_null(-1), np.int64)
    most = len(columns.names) or MOST_CLASSES
    wrong = np.flatnonzero((labels < -1) | (labels >= most))
    if len(wrong):
        row, label = group.start + int(wrong[0]), labels[wrong[0]]
        raise UserError(f"row {row} of {group.file} is of class {label}, of at most {most:,} classes; correct it")
    return labels.astype(np.int32)


def _read_column(opened: Any, group: RowGroup, column: str) -> Any:
    """Returns a column of a row group of an open file as an Arrow array in chunks."""
    arrow = _import_arrow()
    try:
        return opened.read_row_group(group.index, columns=[column]).column(column)
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(group.file, error) from error


def _open_file(file: Path) -> Any:
    """Opens a file and reads where its columns are."""
    arrow = _import_arrow()
    try:
        return arrow.parquet.ParquetFile(file, pre_buffer=False)  # Which would keep what was read last
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return UserError(f"{file} is not a complete Parquet file ({reason}); make or download it again")


def _import_arrow() -> Any:
    """Returns pyarrow, which only this source needs."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet files need pyarrow; run pip install pyarrow") from error
    return pyarrow
