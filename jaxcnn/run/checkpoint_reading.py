"""Reads checkpoints that Orbax has written: in one process or in all of a run, compared with their checksums."""

import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxcnn.checksum import ChecksumError
from jaxcnn.disk import remedy
from jaxcnn.distributed import fetch_state
from jaxcnn.errors import UserError
from jaxcnn.run.orbax_logs import without_orbax_logs
from jaxcnn.run.seal import check_arrays, check_files
from jaxcnn.run.workdir import DAMAGED
from jaxcnn.terminal import console

SELECTED_BY = "top1"
"""The validation metric that selects the best checkpoint."""

METRICS = PurePath("metrics", "metrics")
"""File of the validation metrics in the folder of a checkpoint, as JSON. Orbax has chosen the names."""


class DamagedError(UserError):
    """A checkpoint is damaged."""


def open_checkpointer(directory: Path, **options: Any) -> ocp.training.Checkpointer:
    """Opens a folder of checkpoints whose metrics have been checked."""
    directory = directory.absolute()
    with without_orbax_logs():
        try:
            return list_twice(lambda: ocp.training.Checkpointer(directory, **options))
        except OSError as error:
            raise UserError(
                f"the checkpoints in {directory} cannot be read: {error.strerror or error}. They may be whole: "
                f"{remedy(error) or 'fix that'} and run again"
            ) from error


def list_twice[T](list_checkpoints: Callable[[], T]) -> T:
    """Lets Orbax list the checkpoints of a folder, which reads the metrics of all of them; twice if that fails.

    Orbax fails if training deletes a checkpoint meanwhile, or if what it reads differs from what `_check_metrics` read.
    """
    try:
        return list_checkpoints()
    except (FileNotFoundError, ValueError):
        return list_checkpoints()


def open_alone(directory: Path) -> AbstractContextManager[Any]:
    """Opens a folder of checkpoints for reading by this process alone.

    Raises:
      UserError: the metrics of a checkpoint are damaged and there is no other, or cannot be read.
    """
    check_all_metrics(directory.absolute())
    return open_checkpointer(directory) if jax.process_count() == 1 else nullcontext(LoneReader(directory.absolute()))


class LoneReader:
    """Reads checkpoints in one of several processes, with the methods of Orbax' `Checkpointer`, which takes all."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.checkpoints = [Saved.of(directory / str(step)) for step in finished_steps(directory)]

    def load_checkpointables(self, saved: "Saved", items: dict[str, Any]) -> dict[str, Any]:
        """Loads items of a checkpoint, laid out as the given ones."""
        with self._context():
            loaded: dict[str, Any] = ocp.load_checkpointables(self.directory / str(saved.step), items)
        return loaded

    def checkpointables_metadata(self, saved: "Saved") -> Any:
        """Returns what Orbax has recorded about the items of a checkpoint."""
        with self._context():
            return ocp.checkpointables_metadata(self.directory / str(saved.step))

    def _context(self) -> ocp.Context:
        process, context = jax.process_index(), ocp.Context()
        context.multiprocessing.primary_host = process
        context.multiprocessing.active_processes = {process}
        context.multiprocessing.barrier_sync_key_prefix = f"alone{process}"
        return context


type Reader = ocp.training.Checkpointer | LoneReader
"""What reads checkpoints, in one process or in all of them."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint in a folder.

    Attributes:
      step: steps taken when it was saved.
      metrics: its validation metrics; None if it was not evaluated.
    """

    step: int
    metrics: dict[str, float] | None

    @classmethod
    def of(cls, folder: Path) -> "Saved":
        """Reads which checkpoint is in a folder."""
        file = folder / METRICS
        return cls(int(folder.name), json.loads(file.read_bytes()) if file.exists() else None)


def finished_steps(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, in rising order; unfinished and damaged ones have a suffix."""
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def check_all_metrics(directory: Path) -> None:
    """Sets checkpoints with damaged metrics aside: Orbax reads the metrics of all of them when it opens the folder.

    Raises:
      UserError: the metrics of a checkpoint are damaged and there is no other, or cannot be read.
    """
    for folder in sorted(directory.glob("*/metrics")):
        if folder.parent.name.isdigit():  # Others are still being written.
            try:
                _check_metrics(folder)
            except DamagedError as error:
                if folder.exists():  # Else training has deleted the checkpoint meanwhile.
                    set_aside(directory, int(folder.parent.name), error)


def _check_metrics(folder: Path) -> None:
    """Raises a `UserError` if the metrics of a checkpoint are damaged or cannot be read."""
    file, advice = folder / "metrics", f"remove the folder {folder} to continue without them"
    with _read_errors(str(file), advice=advice), suppress(FileNotFoundError):
        float(json.loads(file.read_bytes())[SELECTED_BY])
        check_files(folder.parent, (folder.name,))


def set_aside(directory: Path, step: int, error: DamagedError) -> None:
    """Renames the folder of a damaged checkpoint, and says so.

    Args:
      directory: the folder of all checkpoints.
      step: the step of the checkpoint.
      error: how it is damaged.

    Raises:
      DamagedError: there is no other checkpoint to use, or the folder cannot be renamed.
    """
    others = [other for other in finished_steps(directory) if other != step]
    if not others:
        raise error
    folder = directory / str(step)
    names = (f"{step}{DAMAGED}{'' if i == 1 else f'-{i}'}" for i in itertools.count(1))
    target = next(directory / name for name in names if not (directory / name).exists())
    try:
        folder.rename(target)
    except OSError:
        raise error from None
    reason = str(error).partition(";")[0]
    console.print(f"{reason}: it was renamed to {target.name}, and checkpoint {max(others)} is used", soft_wrap=True)


def load_items(
    checkpointer: Reader,
    saved: Any,
    items: dict[str, Any],
    *,
    once: Callable[[Callable[[], None]], None],
) -> dict[str, Any]:
    """Loads items of a checkpoint, after checking that they have the expected structure, shapes and types.

    Args:
      checkpointer: its checkpointer.
      saved: which checkpoint.
      items: the expected structure of each item.
      once: calls what needs to be checked in one process only.

    Raises:
      DamagedError: a file or an array differs from its checksum, or Orbax cannot read it.
      UserError: the items differ from the expected ones, or the system refuses to read them.
    """
    where, folder = f"checkpoint {saved.step} of {checkpointer.directory}", _folder(checkpointer, saved)
    once(partial(_check_saved, checkpointer, saved, items))
    metadata = _metadata(checkpointer, saved)
    for name, like in items.items():
        if name not in metadata:
            raise UserError(f"{where} has no {name!r}; give the settings it was trained with, or another --workdir")
        # None: Orbax could not read the metadata. Loading the item raises the reason.
        if metadata[name] is not None:
            _check_tree(metadata[name], like, where=where, name=name)
    with _checkpoint_errors(checkpointer, saved), without_orbax_logs():
        loaded: dict[str, Any] = checkpointer.load_checkpointables(saved, items)
    whole = fetch_state(loaded)

    def check() -> None:
        with _checkpoint_errors(checkpointer, saved):
            check_arrays(folder, whole)

    once(check)
    return loaded


def _check_saved(checkpointer: Reader, saved: Any, items: Collection[str]) -> None:
    """Checks the files of some items of a checkpoint.

    Comes before Orbax reads them: it leaves threads and coroutines behind when it fails.
    """
    folder = _folder(checkpointer, saved)
    with _checkpoint_errors(checkpointer, saved):
        _check_readable(folder)
        check_files(folder, items)


def _folder(checkpointer: Reader, saved: Any) -> Path:
    return Path(checkpointer.directory) / str(saved.step)


def _metadata(checkpointer: Reader, saved: Any) -> dict[str, Any]:
    """Shapes and types of the contents of a checkpoint, by item."""
    with _checkpoint_errors(checkpointer, saved), without_orbax_logs():
        metadata: dict[str, Any] = checkpointer.checkpointables_metadata(saved).metadata
    return metadata


def _check_readable(folder: Path) -> None:
    """Raises an `OSError` if something in a folder cannot be opened. Orbax would treat it as absent."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()


def _checkpoint_errors(checkpointer: Reader, saved: Any) -> AbstractContextManager[None]:
    """`_read_errors` for a checkpoint; the advice says which other checkpoint remains if it is removed."""
    others = [checkpoint.step for checkpoint in checkpointer.checkpoints if checkpoint.step != saved.step]
    instead = f"to resume from checkpoint {max(others)}" if others else "to start anew, for there is no other"
    return _read_errors(
        f"checkpoint {saved.step} of {checkpointer.directory}",
        advice=f"remove its folder {instead}, or train in another --workdir",
    )


@contextmanager
def _read_errors(where: str, *, advice: str) -> Iterator[None]:
    """Turns errors of reading into a `UserError` of one line: damage, or a refusal of the operating system.

    Args:
      where: the file or the checkpoint.
      advice: what to do if it is damaged.

    Raises:
      DamagedError: the code in the context failed for another reason than the two others.
      UserError: the operating system refused to read.
      MemoryError, JaxRuntimeError: there is not enough memory.
    """
    try:
        yield
    except Exception as error:  # Orbax, TensorStore and JSON raise any kind.
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        if isinstance(cause, MemoryError | jax.errors.JaxRuntimeError):
            raise cause from None
        # A missing file is damage, although the system reports it.
        refusal = None if isinstance(cause, FileNotFoundError) else system_error(cause)
        if refusal is None:
            how = str(error) if isinstance(error, ChecksumError) else type(error).__name__
            raise DamagedError(f"{where} is damaged ({how}); {advice}") from error
        raise UserError(
            f"{where} cannot be read: {refusal.strerror or refusal}. It may be whole: fix that and run again"
        ) from error


def system_error(error: BaseException) -> OSError | None:
    """The operating system's refusal behind an error; None if the error has another cause."""
    if isinstance(error, OSError):
        return error
    # TensorStore, below Orbax, raises a ValueError with the system's number somewhere in it.
    found = re.search(r"\bos_error_code='?(\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _check_tree(saved: Any, like: Any, *, where: str, name: str) -> None:
    """Raises a `UserError` that names the first path whose shape or type differs."""
    found, expected = _leaves(saved, name), _leaves(like, name)
    for path in [*expected, *found]:
        if found.get(path) != expected.get(path):
            raise UserError(
                f"{where} does not fit: {path} is {found.get(path, 'absent')} there, "
                f"{expected.get(path, 'absent')} here; give the settings it was trained with, or another --workdir"
            )


def _leaves(tree: Any, name: str) -> dict[str, str]:
    """Type and shape, such as `float32[3, 3, 64, 64]`, of every leaf by its path."""
    return {
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}": f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
