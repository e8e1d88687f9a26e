"""A dry run: what a training will take, by its data, its network and a few steps that are thrown away."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from jaxcnn.config import Config
from jaxcnn.data import check_outside_pictures
from jaxcnn.distributed import place_state
from jaxcnn.errors import UserError
from jaxcnn.memory import describe_shortage
from jaxcnn.models.registry import count_parameters
from jaxcnn.preparation import check_same_settings, initialise, join_processes, prepare_run, print_start
from jaxcnn.processes import is_leader, lead, share
from jaxcnn.run.cost import describe_memory, format_duration, picture_flops
from jaxcnn.run.describe import describe_network
from jaxcnn.run.progress import is_measured
from jaxcnn.run.workdir import Workdir
from jaxcnn.run_step import compile_step, take_step
from jaxcnn.state import TrainState
from jaxcnn.terminal import console, stage, warn
from jaxcnn.training_run import Run, batches_from


class Finding(NamedTuple):
    """What a dry run has found out.

    Attributes:
      text: in words.
      record: in numbers, as JSON has them.
    """

    text: str
    record: dict[str, str | float]


def rehearse(config: Config, workdir: str | Path) -> Iterator[Finding]:
    """Loads the data, builds the network and takes some steps of a run, as far as they can be seen before it starts.

    Pictures are decoded into the cache, as at the start of the run. The workdir is neither created nor changed. If this
    is one of several processes, it joins the others first, and all take the same steps.

    Yields:
      What it takes: the network and its checkpoints, memory and time of the steps at each resolution, and all steps.

    Raises:
      UserError: the run would be refused.
    """
    join_processes(config)
    config, folder = config.recorded(), Workdir(Path(workdir))
    check_same_settings(config)
    check_outside_pictures(folder.path, config.data.source, option="workdir")
    run, _, _, findings = prepare_run(config, folder)
    with stage("preparing the network and its state"):
        weights, state = initialise(run)
        state = place_state(state, run.mesh)
    if is_leader():
        for finding in findings:
            warn(finding)
        print_start(run, folder, step=0, weights=weights)
    # What does not depend on the machine.
    yield _describe_network(run, state)
    if not run.total_steps:
        text = "no step to take: only the classifier is fitted, to features that are computed once for each picture"
        yield Finding(text, {"kind": "total", "steps": 0, "seconds": 0.0})
        return
    # What does.
    total = 0.0
    for epoch, epochs in first_epochs(run.config).items():
        seconds, needed, state = measure_step(run, state, epoch=epoch)
        steps, side = epochs * run.steps_per_epoch, run.config.resolution(epoch)
        total, duration = total + steps * seconds, format_duration(steps * seconds)
        record = {"resolution": side, "steps": steps, "step_seconds": seconds, "step_bytes": needed}
        yield Finding(
            f"{steps:,} steps at {side}x{side} pixels: {seconds:.3g} s each, {duration}; a step needs "
            f"{needed / 1e9:.2f} GB of memory",
            {"kind": "steps", **record},
        )
    text = f"{format_duration(total)} for all steps, evaluation not counted; {describe_memory()}"
    yield Finding(text, {"kind": "total", "steps": run.total_steps, "seconds": total})
    if folder.has_run:
        console.print(f"{folder.path} has a run already: the same command without --dry_run resumes it")


def first_epochs(config: Config) -> dict[int, int]:
    """Returns the number of epochs at each resolution, by the first epoch that has it."""
    sides = [config.resolution(epoch) for epoch in range(config.epochs)]
    return {sides.index(side): count for side, count in Counter(sides).items()}


class MeasuredStep(NamedTuple):
    """What a training step takes.

    Attributes:
      seconds: time, without the compilation.
      needed: bytes of memory, without state and batch.
      state: the state after the measured steps.
    """

    seconds: float
    needed: int
    state: TrainState


def measure_step(run: Run, state: TrainState, *, epoch: int) -> MeasuredStep:
    """Measures the training step of an epoch.

    Args:
      run: the run.
      state: consumed.
      epoch: the epoch, counted from 0; decides the resolution.

    Raises:
      UserError: there is not enough memory for it.
    """
    config, side = run.config, run.config.resolution(epoch)
    with contextlib.closing(batches_from(run, 0, rows=run.rows)) as batches:
        with stage(f"compiling the step for {side}x{side} pixels"):
            needed = compile_step(run, state, batch := next(batches), epoch=epoch)
        shortage = describe_shortage(needed, f"a step of {config.batch_size} pictures of {side}x{side} pixels")
        if found := list(filter(None, share(shortage))):
            raise UserError(found[0])
        with stage(f"taking some steps at {side}x{side} pixels"):
            # The first step also prepares what the others use.
            state, metrics = take_step(run, state, batch, epoch=epoch)
            metrics.loss.block_until_ready()
            taken, seconds, started = 0, 0.0, time.monotonic()
            # The clock of the first process counts for all.
            while not lead(partial(is_measured, taken, seconds)):
                state, metrics = take_step(run, state, next(batches), epoch=epoch)
                metrics.loss.block_until_ready()
                taken, seconds = taken + 1, time.monotonic() - started
    return MeasuredStep(seconds / taken, needed, state)


def _describe_network(run: Run, state: TrainState) -> Finding:
    """Describes the network, what a picture costs, and what a checkpoint takes on the disk."""
    config = run.config
    trained = dataclasses.replace(config.model, inference_side=None)
    flops = picture_flops(trained, classes=len(run.dataset.names), side=config.data.image_size)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
    parameters = count_parameters(state.variables["params"])
    several = "each checkpoint, at most four at once: the last two, the best and the one that is being written"
    return Finding(
        f"{describe_network(config.model)}: {parameters:,} parameters, {3 * flops / 1e6:,.0f} million operations for "
        f"each training picture; {stored / 1e6:,.1f} MB for {several if run.total_steps else 'the checkpoint'}",
        {"kind": "network", "parameters": parameters, "picture_flops": 3 * flops, "checkpoint_bytes": stored},
    )
