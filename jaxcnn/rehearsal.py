"""A dry run: what a training will take, by its data, its network and a few steps that are thrown away."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxcnn import data
from jaxcnn.config import Config
from jaxcnn.distributed import place_state
from jaxcnn.loop import Run, take_step
from jaxcnn.models.registry import count_parameters
from jaxcnn.run.cost import describe_memory, format_duration, picture_flops
from jaxcnn.run.describe import describe_network
from jaxcnn.run.progress import stage, warn
from jaxcnn.run.workdir import Workdir
from jaxcnn.state import TrainState
from jaxcnn.training import check_place, initialise, prepare_run, print_start

LEAST_STEPS = 3
MEASURED_SECONDS = 2.0
"""Steps are measured until there are so many, and for so long."""


def rehearse(config: Config, workdir: str | Path) -> Iterator[str]:
    """Loads the data, builds the network and takes some steps of a run, as far as they can be seen before it starts.

    Pictures are decoded into the cache, as at the start of the run. The workdir is neither created nor changed.

    Yields:
      Lines about the network, its checkpoints, and the time of the steps at each resolution.

    Raises:
      UserError: the run would be refused.
    """
    folder = Workdir(Path(workdir))
    check_place(config, folder)
    run, _, _, findings = prepare_run(config, folder)
    for finding in findings:
        warn(finding)
    weights, state = initialise(run)
    state = place_state(state, run.mesh)
    print_start(run, folder, step=0, weights=weights)
    # What does not depend on the machine.
    yield _describe_network(run, state)
    if not run.total_steps:
        yield "no step to take: only the classifier is fitted, to features that are computed once for each picture"
        return
    # What does.
    total = 0.0
    for epoch, epochs in first_epochs(run.config).items():
        seconds, state = measure_step(run, state, epoch=epoch)
        steps, side = epochs * run.steps_per_epoch, run.config.resolution(epoch)
        total += steps * seconds
        yield f"{steps:,} steps at {side}x{side} pixels: {seconds:.3g} s each, {format_duration(steps * seconds)}"
    yield f"{format_duration(total)} for all steps, evaluation not counted; {describe_memory()}"
    if folder.has_run:
        yield f"{folder.path} has a run already: the same command without --dry_run resumes it"


def first_epochs(config: Config) -> dict[int, int]:
    """Returns the number of epochs at each resolution, by the first epoch that has it."""
    sides = [config.resolution(epoch) for epoch in range(config.epochs)]
    return {sides.index(side): count for side, count in Counter(sides).items()}


def measure_step(run: Run, state: TrainState, *, epoch: int) -> tuple[float, TrainState]:
    """Returns the seconds of a training step in an epoch, without the first, which is compiled, and a later state.

    Args:
      run: the run.
      state: consumed.
      epoch: the epoch, counted from 0; decides the resolution.
    """
    config, side = run.config, run.config.resolution(epoch)
    batches = data.train_batches(
        run.dataset.train, seed=config.seed, batch_size=config.batch_size, balanced=config.balance
    )
    taken, started = 0, 0.0
    with contextlib.closing(batches):
        for batch in batches:
            with stage(f"compiling the step for {side}x{side} pixels") if not taken else contextlib.nullcontext():
                state, metrics = take_step(run, state, batch, epoch=epoch)
                metrics.loss.block_until_ready()
            # The clock starts after the first step.
            taken, started = taken + 1, started or time.monotonic()
            seconds = time.monotonic() - started
            if taken > LEAST_STEPS and seconds >= MEASURED_SECONDS:
                break
    return seconds / (taken - 1), state


def _describe_network(run: Run, state: TrainState) -> str:
    """Describes the network, what a picture costs, and what a checkpoint takes on the disk."""
    config = run.config
    trained = dataclasses.replace(config.model, inference_side=None)
    flops = picture_flops(trained, classes=len(run.dataset.names), side=config.data.image_size)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
    return (
        f"{describe_network(config.model)}: {count_parameters(state.variables['params']):,} parameters, "
        f"{3 * flops / 1e6:,.0f} million operations for each training picture; {stored / 1e6:,.1f} MB "
        "for each of at most two checkpoints"
    )
