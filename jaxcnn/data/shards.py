"""Encoded pictures in ArrayRecord files, which give any of them in any order.

A file of ArrayRecord has an index of its records at the end (https://github.com/google/array_record).
"""

import contextlib
import errno
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxcnn.data.pictures import Picture
from jaxcnn.errors import UserError

SHARD = 2**28
"""Bytes of pictures in a file. Few large files are read and copied faster than many small ones."""

OPEN_FILES = 2**16
"""Limit of open files that this process asks for: a terabyte of pictures lies in 4,000 files, which stay open."""

OPTIONS = "group_size:1,uncompressed"
"""Every record can be read alone, and pictures are compressed already."""


def has_array_record() -> bool:
    """Returns whether the package is installed, which Windows does not have."""
    return importlib.util.find_spec("array_record") is not None


def allow_open_files() -> None:
    """Raises the limit of open files, often 1,024, to `OPEN_FILES`, or as far as the system lets this process."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such module
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class ShardWriter:
    """Writes pictures of a split, one after the other, into files of about `SHARD` bytes each.

    Attributes:
      names: names of the files.
      counts: number of pictures in each of them.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.names: list[str] = []
        self.counts: list[int] = []
        self._folder, self._split = folder, split
        self._writer: Any = None
        self._written = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def write(self, encoded: bytes) -> None:
        """Writes a picture.

        Raises:
          OSError: the disk is full or cannot be written.
        """
        with _system_errors():
            if self._writer is None:
                from array_record.python.array_record_module import ArrayRecordWriter

                self.names.append(f"{self._split}-{len(self.names):05}.array_record")
                self.counts.append(0)
                self._writer = ArrayRecordWriter(str(self._folder / self.names[-1]), OPTIONS)
            self._writer.write(encoded)
        self.counts[-1] += 1
        self._written += len(encoded)
        if self._written >= SHARD:
            self._close()

    def _close(self) -> None:
        writer, self._writer, self._written = self._writer, None, 0
        if writer is not None:
            with _system_errors():
                writer.close()


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Turns the errors of the system into OSError: `array_record` reports them as text, from C++."""
    try:
        yield
    except Exception as error:
        for number in errno.errorcode:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise


class _Part(NamedTuple):
    """A file whose pictures need not be counted, as array_record and TFDS describe it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def describe_shards(folder: Path, writers: Mapping[str, ShardWriter]) -> dict[str, Any]:
    """Returns what the description of an entry says of its files, for `known_counts`: their names, and what is in them.

    Args:
      folder: where the files lie.
      writers: who has written the files of each split.
    """
    return {
        "shards": {split: writer.names for split, writer in writers.items()},
        "records": {
            name: [count, (folder / name).stat().st_mtime_ns]
            for writer in writers.values()
            for name, count in zip(writer.names, writer.counts, strict=True)
        },
    }


def known_counts(folder: Path, description: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of pictures in each file that has not changed since it was described.

    Raises:
      OSError: a file is missing.
    """
    # Entries of earlier versions have no numbers.
    records = description.get("records", {}).items()
    return {name: count for name, (count, time) in records if (folder / name).stat().st_mtime_ns == time}


@dataclass(frozen=True)
class Shards:
    """The pictures of one split in files that `ShardWriter` wrote; several threads may read them at once.

    Attributes:
      folder: where the files lie.
      records: the encoded pictures.
      labels: their classes.
      facts: their names, see `jaxcnn.data.split.facts_type`.
    """

    folder: Path
    records: Any
    labels: Int32[np.ndarray, " n"]
    facts: np.ndarray

    @staticmethod
    def open(
        folder: Path,
        names: Sequence[str],
        *,
        labels: Int32[np.ndarray, " n"],
        facts: np.ndarray,
        counts: Mapping[str, int],
    ) -> "Shards":
        """Opens the files with these names, each when the first of its pictures is read.

        Args:
          folder: where the files lie.
          names: their names.
          labels: classes of their pictures.
          facts: what else is known of them.
          counts: number of pictures in each file; one without a number is opened to count them.

        Raises:
          ValueError: they have other pictures than there are labels.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        allow_open_files()
        try:
            files = [
                _Part(str(folder / name), 0, counts[name], counts[name]) if name in counts else str(folder / name)
                for name in names
            ]
            records = ArrayRecordDataSource(files) if files else ()
        except Exception as error:  # array_record raises RuntimeError and others from C++
            raise ValueError("a file of pictures is damaged") from error
        if not len(records) == len(labels) == len(facts):
            raise ValueError("pictures are missing")
        return Shards(folder, records, labels, facts)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Picture:
        """Returns a picture.

        Raises:
          UserError: it cannot be read.
        """
        file = os.fsdecode(bytes(self.facts["file"][index]))
        try:
            encoded = self.records[index]
        except Exception as error:  # array_record raises RuntimeError and others from C++
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(
                f"{file} cannot be read from {self.folder} ({reason}); check the disk, remove this folder and run "
                "again, which writes it anew"
            ) from error
        return Picture(where=f"{file} in {self.folder}", encoded=encoded, label=int(self.labels[index]), file=file)
