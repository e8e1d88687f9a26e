"""Checkpoints of a run: the last and the best, written atomically by Orbax, restored strictly."""

import dataclasses
import logging
import re
from collections.abc import Iterator
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
from jaxcnn.errors import UserError
from jaxcnn.state import TrainState, Variables, init_variables
from jaxcnn.workdir import Workdir

SELECTED_BY = "top1"
"""The validation metric that makes a checkpoint the best."""


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
        except (OSError, ValueError) as error:
            # TensorStore, below Orbax, tells what the system refused in the words of a ValueError.
            told = re.search(r"([^:]+) \[os_error_code", str(error))
            if isinstance(error, ValueError) and told is None:
                raise
            reason = told[1].strip() if told else getattr(error, "strerror", None) or error
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self._checkpointer.directory}: {reason}; "
                "earlier ones are whole. Make room and run again to go on"
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


@contextmanager
def open_checkpoints(directory: Path) -> Iterator[Checkpoints]:
    """Opens, and creates if need be, a folder of checkpoints."""
    _hush()
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[SELECTED_BY], n=1, keep_checkpoints_without_metrics=False
    )
    checkpointer = ocp.training.Checkpointer(
        directory.absolute(),
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
        cleanup_tmp_directories=True,
    )
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
      UserError: not a workdir, no checkpoint in it yet, one that does not fit the recorded settings, or a damaged
        record of its calibration.
    """
    run = Workdir(workdir)
    config, classes = run.read_config(), run.read_classes()
    if not run.checkpoints.exists():
        raise UserError(f"{workdir} has no checkpoint yet; train first")
    model = models.build_here(dataclasses.replace(config.model, precision="float32"), classes=len(classes.names))
    _hush()
    with ocp.training.Checkpointer(run.checkpoints.absolute()) as checkpointer:
        if not checkpointer.checkpoints:
            raise UserError(f"{workdir} has no checkpoint yet; train first")
        measured = [each for each in checkpointer.checkpoints if each.metrics]
        best = max(measured, key=lambda each: each.metrics[SELECTED_BY]) if measured else checkpointer.latest
        kept = checkpointer.checkpointables_metadata(best).metadata
        item = "average" if "average" in kept else "model"
        variables = _load(checkpointer, best, {item: _shapes(model, config.data.image_size)})[item]
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


def _load(checkpointer: ocp.training.Checkpointer, saved: Any, items: dict[str, Any]) -> dict[str, Any]:
    where = f"checkpoint {saved.step} of {checkpointer.directory}"
    with _damage_told(where):
        metadata = checkpointer.checkpointables_metadata(saved).metadata
    for name, like in items.items():
        if name not in metadata:
            raise UserError(f"{where} has no {name!r}; give the settings it was trained with, or another --workdir")
        _refuse_other_tree(metadata[name], like, where=where, name=name)
    with _damage_told(where):
        loaded: dict[str, Any] = checkpointer.load_checkpointables(saved, items)
    return loaded


def _hush() -> None:
    """Keeps Orbax from logging the traceback of every part that it cannot read or write: the first is raised anyway."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _damage_told(where: str) -> Iterator[None]:
    """Says which checkpoint cannot be read. Orbax's own messages take pages."""
    try:
        yield
    except Exception as error:  # of Orbax, TensorStore, JSON, ...: any kind
        raise UserError(
            f"{where} is damaged ({type(error).__name__}); remove its folder to go on from an earlier one, or train in "
            "another --workdir"
        ) from error


def _refuse_other_tree(saved: Any, like: Any, *, where: str, name: str) -> None:
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
