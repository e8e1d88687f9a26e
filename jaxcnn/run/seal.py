"""The checksums of a checkpoint: of each array and of each file, written with it and compared when it is read."""

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.checksum import ChecksumError, checksum_array, checksum_bytes, checksum_file, seal, unseal
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.typed_json import decode

NAME = "checksums.json"
"""The record, in the folder of the checkpoint. Checkpoints of earlier versions have none."""

STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that Orbax writes after everything else, without a checksum: they only have times and names of types."""


@dataclass(frozen=True)
class Checksums:
    """The checksums of a checkpoint.

    Attributes:
      files: by path in its folder, such as `model/_METADATA`.
      arrays: by item and path in it, such as `model/params/classifier/bias`.
    """

    files: dict[str, str]
    arrays: dict[str, str]


def checksum_arrays(items: Mapping[str, Any]) -> dict[str, str]:
    """Returns the checksum of each array in the items of a checkpoint, by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): checksum_array(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(dict(items))
    }


def write_seal(folder: Path, arrays: dict[str, str]) -> None:
    """Writes the checksums of a checkpoint whose files are complete. The caller waits until they are on the disk.

    Args:
      folder: the folder of the checkpoint.
      arrays: the checksums of its arrays, taken before they were written.

    Raises:
      OSError: a file cannot be read, or the record cannot be written.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in STAMPS]
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor() as pool:
        files = dict(zip(names, pool.map(checksum_file, paths), strict=True))
    (folder / NAME).write_text(_to_text(Checksums(files, arrays)))


def add_to_seal(folder: Path, name: str, content: bytes) -> None:
    """Adds the checksum of a file that is to be written to a checkpoint; does nothing if that has no checksums.

    Args:
      folder: the folder of the checkpoint.
      name: the path of the file in it.
      content: what the file will hold.

    Raises:
      ChecksumError: the record is damaged.
      OSError: the record cannot be read or written.
    """
    checksums = _read(folder)
    if checksums is not None:
        added = replace(checksums, files=checksums.files | {name: checksum_bytes(content)})
        write_atomically(folder / NAME, _to_text(added))


def check_files(folder: Path, items: Collection[str]) -> None:
    """Compares the files of some items of a checkpoint with their checksums.

    Raises:
      ChecksumError: a file differs or is missing, or the record is damaged.
      OSError: a file cannot be read.
    """
    checksums = _read(folder)
    if checksums is None:
        return
    for name, expected in checksums.files.items():
        if name.partition("/")[0] not in items:
            continue
        try:
            found = checksum_file(folder / name)
        except FileNotFoundError:
            raise ChecksumError(f"{name} is missing") from None
        if found != expected:
            raise ChecksumError(f"{name} differs from its checksum")


def check_arrays(folder: Path, items: Mapping[str, Any]) -> None:
    """Compares the arrays of some items of a checkpoint with their checksums.

    Raises:
      ChecksumError: an array differs, or the record is damaged.
      OSError: the record cannot be read.
    """
    checksums = _read(folder)
    if checksums is None:
        return
    for name, found in checksum_arrays(items).items():
        if checksums.arrays.get(name) != found:
            raise ChecksumError(f"the array {name} differs from its checksum")


def _to_text(checksums: Checksums) -> str:
    return json.dumps(seal(asdict(checksums)), indent=2) + "\n"


def _read(folder: Path) -> Checksums | None:
    try:
        text = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return decode(Checksums, unseal(json.loads(text)), NAME)
    except (ValueError, RecursionError, UserError, ChecksumError) as error:
        raise ChecksumError(f"{NAME} is damaged") from error
