"""The checkpoints of a run: the last two and the best, written atomically by Orbax, restored strictly.

What is read is compared with its checksums. A damaged checkpoint is set aside, renamed to `STEP.damaged`, and the one
before it is used; if there is no other, it stays and the error says so.
"""

import dataclasses
import inspect
import itertools
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import flax.linen as nn
import jax
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

from jaxcnn.calibration import Calibration, read_calibration
from jaxcnn.checksum import ChecksumError
from jaxcnn.config import Config
from jaxcnn.disk import describe, remedy, sync, wait_for, write_atomically
from jaxcnn.distributed import fetch_state
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.processes import is_leader, lead
from jaxcnn.run.metrics_log import rank
from jaxcnn.run.seal import add_to_seal, check_arrays, check_files, checksum_arrays, write_seal
from jaxcnn.run.workdir import Workdir
from jaxcnn.state import TrainState, Variables, init_variables
from jaxcnn.terminal import console

SELECTED_BY = "top1"
"""The validation metric that selects the best checkpoint."""

UNFINISHED = ".orbax-checkpoint-tmp"
"""Suffix of folders that Orbax is still writing; Orbax removes leftovers when it next opens the checkpoints."""

METRICS = PurePath("metrics", "metrics")
"""File of the validation metrics in the folder of a checkpoint, as JSON. Orbax has chosen the names."""

DAMAGED = ".damaged"
"""Suffix of folders of damaged checkpoints."""


class DamagedError(UserError):
    """A checkpoint is damaged."""


@dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of a run, ready to evaluate or export.

    Attributes:
      config: the settings of the run.
      names: class names in the order of the logits.
      wnids: WordNet ids in the same order; empty if the data set has none.
      dataset: the data set's name.
      license: the data set's terms.
      model: maps `variables`, uint8 or float32 images [batch, height, width, 3] in [0, 255] and `train=False` to
        float32 logits [batch, classes], before division by the temperature. Computes in float32 whatever precision it
        was trained in, as an exported file does.
      variables: parameters and batch statistics; their moving average if the run keeps one.
      step: steps taken when the checkpoint was saved.
      metrics: validation metrics at that step; empty if the run was stopped before its first evaluation.
      calibration: the temperature of this checkpoint; None if the run did not finish with it.
    """

    config: Config
    names: tuple[str, ...]
    wnids: tuple[str, ...]
    dataset: str
    license: str
    model: nn.Module
    variables: Variables
    step: int
    metrics: dict[str, float]
    calibration: Calibration | None

    @property
    def temperature(self) -> float:
        """The divisor of the logits; 1 without a calibration."""
        return 1.0 if self.calibration is None else self.calibration.temperature


@dataclass
class _Unfinished:
    """The checkpoint that is being written.

    Attributes:
      step: steps taken.
      arrays: the checksums of its arrays.
    """

    step: int = 0
    arrays: Future[dict[str, str]] = field(default_factory=Future)


class Checkpoints:
    """The checkpoints of one run. Use `open_checkpoints`.

    Every process of a run calls the same methods. Each writes and reads its share of the arrays; what concerns whole
    checkpoints, such as their checksums and their names, is done by the leader.
    """

    def __init__(
        self, checkpointer: ocp.training.Checkpointer, unfinished: _Unfinished, listeners: Sequence[Callable[[], None]]
    ):
        self._checkpointer = checkpointer
        self._listeners = listeners
        self._unfinished = unfinished

    @property
    def last_step(self) -> int | None:
        """Steps taken at the last checkpoint, as the first process lists them; None if there is no checkpoint."""
        latest = self._checkpointer.latest
        return lead(lambda: None if latest is None else int(latest.step))

    def save(self, state: TrainState, *, metrics: dict[str, float] | None = None) -> None:
        """Saves a state, and deletes all checkpoints but the last two and the best.

        Args:
          state: the state to save, under the number of its step.
          metrics: validation metrics; without them the checkpoint is never the best.

        Raises:
          UserError: the disk is full or cannot be written. Earlier checkpoints are kept.
        """
        step, items = int(state.step), _to_items(state)
        with self._write_errors(step, items):
            # The checksums are taken in memory, so that they protect the whole way to the disk, and while Orbax writes.
            with ThreadPoolExecutor(1) as pool:
                whole = fetch_state(items) if jax.process_count() > 1 else items
                self._unfinished.step = step
                self._unfinished.arrays = pool.submit(checksum_arrays, whole if is_leader() else {})
                with _without_orbax_logs():
                    # `force`: without it Orbax asks whether JAX has seen SIGTERM; here a save is always wanted.
                    self._checkpointer.save_checkpointables(step, dict(items), metrics=metrics, force=True)
            lead(partial(self._finish, step))

    def lacks_metrics(self, step: int) -> bool:
        """Returns whether the last checkpoint is that of a step, and was saved without metrics."""
        latest = self._checkpointer.latest
        return lead(lambda: latest is not None and latest.step == step and not latest.metrics)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds validation metrics to a checkpoint that was saved without; then keeps those that `save` keeps.

        Raises:
          UserError: the disk is full or cannot be written. The checkpoint is as it was.
        """
        with self._write_errors(step, metrics):
            lead(partial(self._add_metrics, step, json.dumps(metrics).encode()))

    def _add_metrics(self, step: int, content: bytes) -> None:
        folder, item = self._folder(step), METRICS.parent
        (folder / item).mkdir(exist_ok=True)
        # A file that is missing counts as no metrics, one that its checksum does not cover as whole.
        add_to_seal(folder, METRICS.as_posix(), content)
        write_atomically(folder / METRICS, content)
        self._finish(step)

    @contextmanager
    def _write_errors(self, step: int, items: Any) -> Iterator[None]:
        """Turns the system's refusal to write arrays or numbers of a checkpoint into a `UserError`."""
        try:
            yield
        except (OSError, ValueError) as error:
            refusal = _system_error(error)
            if refusal is None:
                raise
            folder = Path(self._checkpointer.directory)
            size = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(items))
            advice = (remedy(refusal) or "check the disk").capitalize()
            raise UserError(
                f"the checkpoint of step {step} could not be written to {folder}: "
                f"{describe(refusal, folder, needed=size)}; earlier ones are whole. {advice} and run again to resume"
            ) from error

    def _finish(self, step: int) -> None:
        """Makes a saved checkpoint permanent, then deletes all others but the one before it and the best."""
        # The contents reached the disk before the folder was renamed. The new name has to reach it too, before
        # older checkpoints are deleted: a power cut must not lose both.
        _sync(self._folder(step))
        self._delete_outdated()
        _list_twice(self._checkpointer.reload)
        for listener in self._listeners:
            listener()

    def restore(self, like: TrainState) -> TrainState:
        """Restores the last checkpoint. If it is damaged, sets it aside and restores the one before it.

        Args:
          like: a state with the structure, shapes and types that the checkpoint must have.

        Raises:
          UserError: the checkpoint has another model or optimizer (the message names the first path that differs), is
            damaged and the only one, or cannot be read.
        """
        while True:
            last = self._find(self.last_step)
            try:
                items = _load(self._checkpointer, last, _to_items(like), once=lead)
                break
            except DamagedError as error:
                lead(partial(_set_aside, Path(self._checkpointer.directory), last.step, error))
                _list_twice(self._checkpointer.reload)
        training = items["training"]
        return TrainState(
            step=training["step"],
            variables=items["model"],
            opt_state=training["opt_state"],
            average=items.get("average"),
            finite=training["finite"],
        )

    def _find(self, step: int | None) -> Any:
        """Returns the checkpoint of a step. A network drive may show it to another machine than the first one later.

        Raises:
          UserError: this process does not see it.
        """

        def find() -> Any:
            found = next((saved for saved in self._checkpointer.checkpoints if saved.step == step), None)
            if found is None:
                with suppress(OSError, ValueError):  # It may still show others that are deleted.
                    self._checkpointer.reload()
            return found

        if (found := wait_for(find)) is None:
            raise UserError(
                f"process {jax.process_index()} does not see checkpoint {step} of {self._checkpointer.directory}; "
                "give a --workdir on a disk that all machines share"
            )
        return found

    def _delete_outdated(self) -> None:
        """Deletes all but the last two and the best: the last but one is used if the last is damaged.

        Orbax's own policy would delete before the new one is on the disk.
        """
        _list_twice(self._checkpointer.reload)
        saved = self._checkpointer.checkpoints
        kept = {checkpoint.step for checkpoint in [*saved[-2:], _best(saved)]}
        for step in {checkpoint.step for checkpoint in saved} - kept:
            folder = self._folder(step)
            # Renamed first: a deletion cut short leaves an unfinished folder, not a damaged checkpoint.
            folder.rename(folder.with_name(f"{step}{UNFINISHED}"))
        # A network drive keeps a file that somebody reads; it is deleted after the next save.
        for left in Path(self._checkpointer.directory).glob(f"*{UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return Path(self._checkpointer.directory) / str(step)


@contextmanager
def open_checkpoints(directory: Path, listeners: Sequence[Callable[[], None]] = ()) -> Iterator[Checkpoints]:
    """Opens a folder of checkpoints for training; creates it if it does not exist.

    Args:
      directory: the folder.
      listeners: the leader calls them after every save.

    Raises:
      UserError: the metrics of a checkpoint are damaged and there is no other, or cannot be read.
      OSError: the folder cannot be created or reach the disk.
    """
    unfinished = _Unfinished()

    def finish() -> None:
        folder = directory / f"{unfinished.step}{UNFINISHED}"
        write_seal(folder, unfinished.arrays.result())
        _sync(folder)

    context = ocp.Context()
    # Created beside the writing, a folder that the disk refuses would leave threads that wait for it for five minutes,
    # and the program would end only after them.
    context.asynchronous.create_directories_asynchronously = False
    # Orbax calls this, in the leader, when all files are written, before it renames the folder: what has a step's name
    # is whole.
    context.asynchronous.post_finalization_callback = finish
    if jax.process_count() > 1:
        _report_failures_at_once(context)
    lead(partial(_check_all_metrics, directory.absolute()))
    checkpointer = _open(directory, context=context, cleanup_tmp_directories=True)
    closing: AbstractContextManager[None] = nullcontext()
    try:
        # Without the name of this folder a power cut would lose every checkpoint in it.
        if is_leader():
            sync(directory.parent)
        yield Checkpoints(checkpointer, unfinished, listeners)
    except UserError:
        # After a failed write Orbax raises the same error again when it closes.
        closing = suppress(OSError, ValueError)
        raise
    finally:
        with closing, _without_orbax_logs():
            checkpointer.close()


def _report_failures_at_once(context: ocp.Context) -> None:
    """Lets a process that cannot write its part of a checkpoint raise the error without waiting for the others.

    After a failure too, Orbax's thread waits for the others before it raises the error, and they wait for the part that
    is missing: all of them for 20 minutes. If the process ends instead, the others end as well.
    """
    options, meet, caller = context.asynchronous.v0(), multihost.get_barrier_sync_fn(), threading.current_thread()

    def meet_unless_failed(*, key: str, timeout_ms: int) -> None:
        # The caller may be handling another error, such as a stop; Orbax's threads handle errors of the save only.
        if threading.current_thread() is caller or sys.exception() is None:
            meet(key=key, timeout_ms=timeout_ms)

    # Only the older version of the options, which Orbax makes of this one, has a barrier.
    context.asynchronous.v0 = lambda: dataclasses.replace(options, barrier_sync_fn=meet_unless_failed)


def load_model(workdir: Path) -> TrainedModel:
    """Loads the best checkpoint of a run, or the last if the run was not evaluated yet.

    Raises:
      UserError: the folder is not a workdir or has no checkpoint yet; the checkpoint is damaged, cannot be read or does
        not fit the recorded settings; or the record of its calibration is damaged.
    """
    folder = Workdir(workdir)
    config, classes = folder.read_config(), folder.read_classes()
    if not folder.checkpoints.exists():
        raise UserError(f"{workdir} has no checkpoint yet; train first")
    model = registry.build_here(dataclasses.replace(config.model, precision="float32"), classes=len(classes.names))
    best, variables = _load_best(folder, _shapes(model, config.data.image_size))
    return TrainedModel(
        config=config,
        names=classes.names,
        wnids=classes.wnids,
        dataset=classes.dataset,
        license=classes.license,
        model=model,
        variables=variables,
        step=int(best.step),
        metrics=dict(best.metrics or {}),
        calibration=read_calibration(folder.calibration, step=int(best.step)),
    )


def _to_items(state: TrainState) -> dict[str, Any]:
    """Splits a state into items that can be loaded separately: evaluation and export need no optimizer state."""
    items: dict[str, Any] = {
        "model": state.variables,
        "training": {"step": state.step, "opt_state": state.opt_state, "finite": state.finite},
    }
    return items if state.average is None else items | {"average": state.average}


def _shapes(model: nn.Module, image_size: int) -> Variables:
    """Shapes and types of a model's variables, placed on a device of this process, whichever devices saved them."""
    variables = jax.eval_shape(lambda key: init_variables(key, model=model, image_size=image_size), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes: Variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),  # type: ignore[no-untyped-call]
        variables,
    )
    return shapes


def _open(directory: Path, **options: Any) -> ocp.training.Checkpointer:
    """Opens a folder of checkpoints whose metrics have been checked."""
    directory = directory.absolute()
    with _without_orbax_logs():
        try:
            return _list_twice(lambda: ocp.training.Checkpointer(directory, **options))
        except OSError as error:
            raise UserError(
                f"the checkpoints in {directory} cannot be read: {error.strerror or error}. They may be whole: "
                f"{remedy(error) or 'fix that'} and run again"
            ) from error


def _list_twice[T](list_checkpoints: Callable[[], T]) -> T:
    """Lets Orbax list the checkpoints of a folder, which reads the metrics of all of them; twice if that fails.

    Orbax fails if training deletes a checkpoint meanwhile, or if what it reads differs from what `_check_metrics` read.
    """
    try:
        return list_checkpoints()
    except (FileNotFoundError, ValueError):
        return list_checkpoints()


def _open_alone(directory: Path) -> AbstractContextManager[Any]:
    """Opens a folder of checkpoints for reading by this process alone.

    Raises:
      UserError: the metrics of a checkpoint are damaged and there is no other, or cannot be read.
    """
    _check_all_metrics(directory.absolute())
    return _open(directory) if jax.process_count() == 1 else nullcontext(_LoneReader(directory.absolute()))


class _LoneReader:
    """Reads checkpoints in one of several processes, with the methods of Orbax' `Checkpointer`, which takes all."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.checkpoints = [_Saved.of(directory / str(step)) for step in _finished_steps(directory)]

    def load_checkpointables(self, saved: "_Saved", items: dict[str, Any]) -> dict[str, Any]:
        with self._context():
            loaded: dict[str, Any] = ocp.load_checkpointables(self.directory / str(saved.step), items)
        return loaded

    def checkpointables_metadata(self, saved: "_Saved") -> Any:
        with self._context():
            return ocp.checkpointables_metadata(self.directory / str(saved.step))

    def _context(self) -> ocp.Context:
        process, context = jax.process_index(), ocp.Context()
        context.multiprocessing.primary_host = process
        context.multiprocessing.active_processes = {process}
        context.multiprocessing.barrier_sync_key_prefix = f"alone{process}"
        return context


type _Reader = ocp.training.Checkpointer | _LoneReader
"""What reads checkpoints, in one process or in all of them."""


@dataclass(frozen=True)
class _Saved:
    """A checkpoint in a folder.

    Attributes:
      step: steps taken when it was saved.
      metrics: its validation metrics; None if it was not evaluated.
    """

    step: int
    metrics: dict[str, float] | None

    @classmethod
    def of(cls, folder: Path) -> "_Saved":
        file = folder / METRICS
        return cls(int(folder.name), json.loads(file.read_bytes()) if file.exists() else None)


def _finished_steps(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, in rising order; unfinished and damaged ones have a suffix."""
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _check_all_metrics(directory: Path) -> None:
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
                    _set_aside(directory, int(folder.parent.name), error)


def _check_metrics(folder: Path) -> None:
    """Raises a `UserError` if the metrics of a checkpoint are damaged or cannot be read."""
    file, advice = folder / "metrics", f"remove the folder {folder} to continue without them"
    with _read_errors(str(file), advice=advice), suppress(FileNotFoundError):
        float(json.loads(file.read_bytes())[SELECTED_BY])
        check_files(folder.parent, (folder.name,))


def _set_aside(directory: Path, step: int, error: DamagedError) -> None:
    """Renames the folder of a damaged checkpoint, and says so.

    Args:
      directory: the folder of all checkpoints.
      step: the step of the checkpoint.
      error: how it is damaged.

    Raises:
      DamagedError: there is no other checkpoint to use, or the folder cannot be renamed.
    """
    others = [other for other in _finished_steps(directory) if other != step]
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


def _best(saved: Sequence[Any]) -> Any:
    """The best checkpoint by `rank`; the last one if none has metrics."""
    measured = [checkpoint for checkpoint in saved if SELECTED_BY in (checkpoint.metrics or {})]
    if not measured:
        return saved[-1]
    return max(measured, key=lambda checkpoint: rank(checkpoint.metrics[SELECTED_BY], checkpoint.step))


def _load_best(workdir: Workdir, like: Variables) -> tuple[Any, Variables]:
    """Loads the variables of the best checkpoint, or their moving average if it has one.

    Raises:
      UserError: there is no checkpoint yet, or it is damaged, cannot be read or does not fit.
    """
    failures: set[int] = set()
    while True:
        with _open_alone(workdir.checkpoints) as checkpointer:
            if not checkpointer.checkpoints:
                raise UserError(f"{workdir.path} has no checkpoint yet; train first")
            best = _best(checkpointer.checkpoints)
            try:
                item = "average" if (workdir.checkpoints / str(best.step) / "average").exists() else "model"
                return best, _load(checkpointer, best, {item: like}, once=_call)[item]
            except UserError as error:
                # Training may have replaced the checkpoint in the meantime: select again.
                if best.step in failures:
                    if not isinstance(error, DamagedError):
                        raise
                    _set_aside(workdir.checkpoints, best.step, error)
                failures.add(best.step)


def _load(
    checkpointer: _Reader,
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
    where, folder = (
        f"checkpoint {saved.step} of {checkpointer.directory}",
        Path(checkpointer.directory) / str(saved.step),
    )
    once(partial(_check_saved, checkpointer, saved, items))
    metadata = _metadata(checkpointer, saved)
    for name, like in items.items():
        if name not in metadata:
            raise UserError(f"{where} has no {name!r}; give the settings it was trained with, or another --workdir")
        # None: Orbax could not read the metadata. Loading the item raises the reason.
        if metadata[name] is not None:
            _check_tree(metadata[name], like, where=where, name=name)
    with _checkpoint_errors(checkpointer, saved), _without_orbax_logs():
        loaded: dict[str, Any] = checkpointer.load_checkpointables(saved, items)
    whole = fetch_state(loaded)

    def check() -> None:
        with _checkpoint_errors(checkpointer, saved):
            check_arrays(folder, whole)

    once(check)
    return loaded


def _check_saved(checkpointer: _Reader, saved: Any, items: Collection[str]) -> None:
    """Checks the files of some items of a checkpoint.

    Comes before Orbax reads them: it leaves threads and coroutines behind when it fails.
    """
    folder = Path(checkpointer.directory) / str(saved.step)
    with _checkpoint_errors(checkpointer, saved):
        _check_readable(folder)
        check_files(folder, items)


def _metadata(checkpointer: _Reader, saved: Any) -> dict[str, Any]:
    """Shapes and types of the contents of a checkpoint, by item."""
    with _checkpoint_errors(checkpointer, saved), _without_orbax_logs():
        metadata: dict[str, Any] = checkpointer.checkpointables_metadata(saved).metadata
    return metadata


def _check_readable(folder: Path) -> None:
    """Raises an `OSError` if something in a folder cannot be opened. Orbax would treat it as absent."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()


def _call(function: Callable[[], None]) -> None:
    function()


def _sync(folder: Path) -> None:
    """Waits until a folder, its contents and its name have reached the disk. Orbax does not wait."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)


@contextmanager
def _without_orbax_logs() -> Iterator[None]:
    """Drops what Orbax logs in the context: a traceback for every part that fails, although it raises the first error.

    Orbax logs through the loggers of absl and asyncio, which belong to the whole program: the records of other threads
    are kept, and the filters are removed afterwards. Only threads that Orbax leaves behind after a failure, and that
    may fail later, stay without logs.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    others = set(threading.enumerate()) - {threading.current_thread()}

    def of_others(_: logging.LogRecord) -> bool:
        return threading.current_thread() in others

    for logger in loggers:
        logger.addFilter(of_others)
    hook = sys.unraisablehook
    _drop_late_errors()
    try:
        yield
        sys.unraisablehook = hook
    except Exception:
        left = set(threading.enumerate()) - others - {threading.current_thread()}
        for logger in loggers if left else ():
            logger.addFilter(lambda _: threading.current_thread() not in left)
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(of_others)


def _drop_late_errors() -> None:
    """Drops what Orbax reports besides the first error, from operations that it has begun and does not wait for.

    Threads of TensorStore find the event loop closed, and coroutines are destroyed before their end. Python reports
    both through `sys.unraisablehook`; all other errors are reported as before.
    """
    report = sys.unraisablehook
    if getattr(report, "__module__", "") == __name__:
        return  # Dropped already, after an earlier failure.

    def hook(late: "sys.UnraisableHookArgs") -> None:
        is_closed = isinstance(late.exc_value, RuntimeError) and str(late.exc_value) == "Event loop is closed"
        is_unfinished = inspect.iscoroutine(late.object) and "orbax" in late.object.cr_code.co_filename
        if not is_closed and not is_unfinished:
            report(late)

    sys.unraisablehook = hook


def _checkpoint_errors(checkpointer: _Reader, saved: Any) -> AbstractContextManager[None]:
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
        refusal = None if isinstance(cause, FileNotFoundError) else _system_error(cause)
        if refusal is None:
            how = str(error) if isinstance(error, ChecksumError) else type(error).__name__
            raise DamagedError(f"{where} is damaged ({how}); {advice}") from error
        raise UserError(
            f"{where} cannot be read: {refusal.strerror or refusal}. It may be whole: fix that and run again"
        ) from error


def _system_error(error: BaseException) -> OSError | None:
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
