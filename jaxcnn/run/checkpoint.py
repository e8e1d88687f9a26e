"""Checkpoints of a run: the last and the best, written atomically by Orbax, restored strictly."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from orbax.checkpoint import v1 as ocp

from jaxcnn import models
from jaxcnn.calibration import Calibration, read_calibration
from jaxcnn.config import Config
from jaxcnn.disk import sync
from jaxcnn.errors import UserError
from jaxcnn.run.workdir import Workdir
from jaxcnn.state import TrainState, Variables, init_variables

SELECTED_BY = "top1"
"""The validation metric that makes a checkpoint the best."""

UNFINISHED = ".orbax-checkpoint-tmp"
"""Ends the name of a folder that Orbax still writes, and removes when it next opens the checkpoints."""


@dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of a run, ready to evaluate or export.

    Attributes:
      model: called with `variables`, uint8 or float32 images [batch, height, width, 3] in [0, 255], and
        `train=False`, gives float32 logits [batch, classes], not yet divided by the temperature. Like an exported
        file it computes in float32, whatever it was trained in.
      variables: parameters and batch statistics; the moving average where the run keeps one.
      step: steps taken when it was saved.
      metrics: validation metrics of that step; empty if the run was stopped before its first evaluation.
      calibration: how its logits become calibrated ones; None unless the run was finished with this checkpoint.
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
        """What the logits are to be divided by; 1 without a calibration."""
        return 1.0 if self.calibration is None else self.calibration.temperature


class Checkpoints:
    """The checkpoints of one run. Use `open_checkpoints`."""

    def __init__(self, checkpointer: ocp.training.Checkpointer):
        self._checkpointer = checkpointer

    @property
    def last_step(self) -> int | None:
        """Steps taken at the latest checkpoint; None before the first."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def save(self, state: TrainState, *, metrics: dict[str, float] | None = None) -> None:
        """Writes the state; kept while it is the last, or the best of those with metrics.

        Raises:
          UserError: the disk is full or cannot be written. Earlier checkpoints stay.
        """
        step = int(state.step)
        try:
            self._checkpointer.save_checkpointables(step, _to_items(state), metrics=metrics)
            _sync(self._folder(step))  # now for its name: a power cut must not find both gone
            self._remove_outdated()
        except (OSError, ValueError) as error:
            reason = _refusal(error)
            if reason is None:
                raise
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self._checkpointer.directory}: {reason}; "
                "earlier ones are whole. Make room and run again to resume"
            ) from error

    def restore(self, like: TrainState) -> TrainState:
        """The latest checkpoint.

        Args:
          like: a state of the structure, shapes and types that the checkpoint must have.

        Raises:
          UserError: the checkpoint is of another model or optimizer, naming the first path that differs.
        """
        items = _load(self._checkpointer, self._checkpointer.latest, _to_items(like))
        training = items["training"]
        return TrainState(
            step=training["step"],
            variables=items["model"],
            opt_state=training["opt_state"],
            average=items.get("average"),
            finite=training["finite"],
        )

    def _remove_outdated(self) -> None:
        """Removes all but the last and the best. Orbax by itself would do so before the new one is on the disk."""
        self._checkpointer.reload()
        saved = self._checkpointer.checkpoints
        for step in {each.step for each in saved} - {saved[-1].step, _best(saved).step}:
            folder = self._folder(step)
            # Under the name of an unfinished one it is gone at once, for who reads it and for the next run.
            shutil.rmtree(folder.rename(folder.with_name(f"{step}{UNFINISHED}")))

    def _folder(self, step: int) -> Path:
        return Path(self._checkpointer.directory) / str(step)


@contextmanager
def open_checkpoints(directory: Path) -> Iterator[Checkpoints]:
    """Opens, and creates if need be, a folder of checkpoints.

    Raises:
      UserError: the metrics of a checkpoint are damaged or cannot be read.
    """

    def sync_unfinished() -> None:
        for folder in directory.glob(f"*{UNFINISHED}"):
            _sync(folder)

    context = ocp.Context()
    # Called when all files are written, before they get the name of a checkpoint: what has the name is whole.
    context.asynchronous.post_finalization_callback = sync_unfinished
    checkpointer = _open(directory, context=context, cleanup_tmp_directories=True)
    closing: AbstractContextManager[None] = nullcontext()
    try:
        yield Checkpoints(checkpointer)
    except UserError:
        closing = suppress(OSError, ValueError)  # Orbax raises a write that failed again when it closes
        raise
    finally:
        with closing:
            checkpointer.close()


def load_model(workdir: Path) -> TrainedModel:
    """Reads the best checkpoint of a run, or the last of a run that was not evaluated yet.

    Raises:
      UserError: not a workdir, no checkpoint in it yet, one that is damaged, cannot be read or does not fit the
        recorded settings, or a damaged record of its calibration.
    """
    run = Workdir(workdir)
    config, classes = run.read_config(), run.read_classes()
    if not run.checkpoints.exists():
        raise UserError(f"{workdir} has no checkpoint yet; train first")
    model = models.build_here(dataclasses.replace(config.model, precision="float32"), classes=len(classes.names))
    best, variables = _load_best(run, _shapes(model, config.data.image_size))
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
        calibration=read_calibration(run.calibration, step=int(best.step)),
    )


def _to_items(state: TrainState) -> dict[str, Any]:
    """The state in the parts that are read apart: evaluation and export need no optimizer."""
    items: dict[str, Any] = {
        "model": state.variables,
        "training": {"step": state.step, "opt_state": state.opt_state, "finite": state.finite},
    }
    return items if state.average is None else items | {"average": state.average}


def _shapes(model: nn.Module, image_size: int) -> Variables:
    """Shapes and types of a model's variables, placed on the first device whatever device wrote them."""
    variables = jax.eval_shape(lambda key: init_variables(key, model=model, image_size=image_size), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes: Variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),  # type: ignore[no-untyped-call]
        variables,
    )
    return shapes


def _open(directory: Path, **options: Any) -> ocp.training.Checkpointer:
    """Opens a folder of checkpoints, whose metrics Orbax reads at once.

    Raises:
      UserError: the metrics of a checkpoint are damaged or cannot be read.
    """
    _hush()
    for folder in sorted(directory.absolute().glob("*/metrics")):
        if folder.parent.name.isdigit():  # not one that is being written
            file, advice = folder / "metrics", f"remove the folder {folder} to go on without them"
            with _damage_told(str(file), advice=advice), suppress(FileNotFoundError):
                float(json.loads(file.read_bytes())[SELECTED_BY])
    try:
        return ocp.training.Checkpointer(directory.absolute(), **options)
    except FileNotFoundError:  # training has removed one while they were listed
        return ocp.training.Checkpointer(directory.absolute(), **options)


def _best(saved: Sequence[Any]) -> Any:
    """The best of some checkpoints, of equals the later; the last, if none was measured."""
    measured = [each for each in saved if each.metrics]
    return max(measured, key=lambda each: (each.metrics[SELECTED_BY], each.step)) if measured else saved[-1]


def _load_best(run: Workdir, like: Variables) -> tuple[Any, Variables]:
    """The best checkpoint and its variables, the moving average where it has one.

    Raises:
      UserError: there is none yet, or it is damaged, cannot be read or does not fit.
    """
    failures: dict[int, UserError] = {}
    while True:
        with _open(run.checkpoints) as checkpointer:
            if not checkpointer.checkpoints:
                raise UserError(f"{run.path} has no checkpoint yet; train first")
            best = _best(checkpointer.checkpoints)
            if best.step in failures:
                raise failures[best.step]
            try:
                item = "average" if "average" in _metadata(checkpointer, best) else "model"
                return best, _load(checkpointer, best, {item: like})[item]
            except UserError as error:  # perhaps of one that training has replaced meanwhile: choose anew
                failures[best.step] = error


def _load(checkpointer: ocp.training.Checkpointer, saved: Any, items: dict[str, Any]) -> dict[str, Any]:
    where = f"checkpoint {saved.step} of {checkpointer.directory}"
    metadata = _metadata(checkpointer, saved)
    for name, like in items.items():
        if name not in metadata:
            raise UserError(f"{where} has no {name!r}; give the settings it was trained with, or another --workdir")
        if metadata[name] is not None:  # Orbax could not read it and does not say why; it will when it loads it
            _check_tree(metadata[name], like, where=where, name=name)
    with _reading(checkpointer, saved):
        loaded: dict[str, Any] = checkpointer.load_checkpointables(saved, items)
    return loaded


def _metadata(checkpointer: ocp.training.Checkpointer, saved: Any) -> dict[str, Any]:
    """Shapes and types of what a checkpoint holds, by the name of the part."""
    with _reading(checkpointer, saved):
        _open_all(Path(checkpointer.directory) / str(saved.step))
        metadata: dict[str, Any] = checkpointer.checkpointables_metadata(saved).metadata
    return metadata


def _open_all(folder: Path) -> None:
    """Raises an `OSError` if something cannot be opened. Orbax takes that for absent."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()


def _sync(folder: Path) -> None:
    """Waits until a folder, all that is in it and its name have reached the disk. Orbax leaves that to the system."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)


def _hush() -> None:
    """Keeps Orbax from logging the traceback of every part that it cannot read or write: the first is raised anyway."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _reading(checkpointer: ocp.training.Checkpointer, saved: Any) -> AbstractContextManager[None]:
    """Says that a checkpoint cannot be read, and which one there is instead."""
    others = [each.step for each in checkpointer.checkpoints if each.step != saved.step]
    instead = f"to go on from checkpoint {max(others)}" if others else "to begin anew, for there is no other"
    return _damage_told(
        f"checkpoint {saved.step} of {checkpointer.directory}",
        advice=f"remove its folder {instead}, or train in another --workdir",
    )


@contextmanager
def _damage_told(where: str, *, advice: str) -> Iterator[None]:
    """Tells damage, for which there is the advice, from what the system refuses. Orbax's own messages take pages.

    Raises:
      UserError: what is read within cannot be read.
      MemoryError, JaxRuntimeError: there is no room for it.
    """
    try:
        yield
    except Exception as error:  # of Orbax, TensorStore, JSON, ...: any kind
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        if isinstance(cause, MemoryError | jax.errors.JaxRuntimeError):
            raise cause from None
        reason = None if isinstance(cause, FileNotFoundError) else _refusal(cause)
        if reason is None:
            raise UserError(f"{where} is damaged ({type(error).__name__}); {advice}") from error
        raise UserError(f"{where} cannot be read: {reason}. It may be whole: mend that and run again") from error


def _refusal(error: BaseException) -> str | None:
    """What the system refused, in its words; None of an error that is no refusal."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    told = re.search(r"([^:]+) \[os_error_code", str(error))  # TensorStore, below Orbax, tells it by a ValueError
    return told[1].strip() if told else None


def _check_tree(saved: Any, like: Any, *, where: str, name: str) -> None:
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
