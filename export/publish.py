"""Puts an exported model and the files beside it in their places, all of them or none."""

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from export import sidecars
from jaxcnn.disk import sync, write_atomically
from jaxcnn.errors import UserError

_ABANDONED = 24 * 60 * 60
"""Seconds without a new file after which an export is taken for killed: the longest exports take some hours."""


def check_replaceable(target: Path) -> None:
    """Raises UserError if something other than an earlier export has the name of the model or of a file beside it."""
    if target.is_dir():
        raise UserError(f"{target} cannot be written: Is a directory; give another path with -o")
    if foreign := sidecars.foreign_path(target):
        raise UserError(
            f"{foreign} would be written with {target}, but is something else already; move it away, or give another "
            "name with -o"
        )


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Makes a folder beside a model to write it in, and removes those that killed exports have left."""
    prefix = f".export-{target.name}-"
    for folder in target.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):  # Another export may be removing it, too
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder)
    # What cannot be removed now is removed after a day.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as name:
        yield Path(name)


def publish(path: Path, beside: Mapping[str, bytes], target: Path) -> None:
    """Moves a model to its place, with the files beside it; they have reached the disk when this returns.

    Readers refuse a model that differs from its description, MODEL.json. So it is removed while files are replaced: an
    interruption or a power cut leaves the older model or the new one, and either can be used.

    Args:
      path: the model in its temporary folder.
      beside: the content of the other files by path, in the order of `sidecars.make_sidecars`.
      target: the model's place.
    """
    # Everything is on the disk before anything is replaced, so a full disk changes nothing.
    for name, content in beside.items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        write_atomically(path.parent / name, content)
    description = target.with_suffix(".json").name
    (target.parent / description).unlink(missing_ok=True)
    sync(target.parent)
    # The model comes after the others: if one of them cannot be replaced, the older model is still there.
    others = [name for name in beside if name != description]
    for names in ([*others, target.name], [description]):
        for name in names:
            (target.parent / name).parent.mkdir(exist_ok=True)
            os.replace(path.parent / name, target.parent / name)
        # A rename between two folders is certain when both are on the disk.
        for folder in {(place / name).parent for name in names for place in (path.parent, target.parent)}:
            sync(folder)
