"""The checkpoints of a run: the last two and the best, written atomically by Orbax, restored strictly.

What is read is compared with its checksums. A damaged checkpoint is set aside, renamed to `STEP.damaged`, and the one
before it is used; if there is no other, it stays and the error says so.
"""

import dataclasses
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

from jaxcnn.calibration import Calibration, read_calibration
from jaxcnn.config import Config
from jaxcnn.disk import describe, remedy, sync, wait_for, write_atomically
from jaxcnn.distributed import fetch_state
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.processes import is_leader, lead
from jaxcnn.run.checkpoint_reading import (
    METRICS,
    SELECTED_BY,
    DamagedError,
    check_all_metrics,
    list_twice,
    load_items,
    open_alone,
    open_checkpointer,
    set_aside,
    system_error,
)
from jaxcnn.run.metrics_log import rank
from jaxcnn.run.orbax_logs import without_orbax_logs
from jaxcnn.run.seal import add_to_seal, checksum_arrays, write_seal
from jaxcnn.run.workdir import Workdir
from jaxcnn.state import TrainState, Variables, init_variables

UNFINISHED = ".orbax-checkpoint-tmp"
"""Suffix of folders that Orbax is still writing; Orbax removes leftovers when it next opens the checkpoints."""


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
                with without_orbax_logs():
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
            refusal = system_error(error)
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
        list_twice(self._checkpointer.reload)
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
                items = load_items(self._checkpointer, last, _to_items(like), once=lead)
                break
            except DamagedError as error:
                lead(partial(set_aside, Path(self._checkpointer.directory), last.step, error))
                list_twice(self._checkpointer.reload)
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
        list_twice(self._checkpointer.reload)
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
    lead(partial(check_all_metrics, directory.absolute()))
    checkpointer = open_checkpointer(directory, context=context, cleanup_tmp_directories=True)
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
        with closing, without_orbax_logs():
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
        with open_alone(workdir.checkpoints) as checkpointer:
            if not checkpointer.checkpoints:
                raise UserError(f"{workdir.path} has no checkpoint yet; train first")
            best = _best(checkpointer.checkpoints)
            try:
                item = "average" if (workdir.checkpoints / str(best.step) / "average").exists() else "model"
                return best, load_items(checkpointer, best, {item: like}, once=_call)[item]
            except UserError as error:
                # Training may have replaced the checkpoint in the meantime: select again.
                if best.step in failures:
                    if not isinstance(error, DamagedError):
                        raise
                    set_aside(workdir.checkpoints, best.step, error)
                failures.add(best.step)


def _call(function: Callable[[], None]) -> None:
    function()


def _sync(folder: Path) -> None:
    """Waits until a folder, its contents and its name have reached the disk. Orbax does not wait."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)
