"""The learning rate range test of Smith 2017, "Cyclical Learning Rates for Training Neural Networks".

The learning rate rises exponentially from step to step until the loss diverges. Good rates lie where the loss falls
fastest, well below the rate at which it rises again.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcnn.config import Config
from jaxcnn.distributed import place_state
from jaxcnn.errors import UserError
from jaxcnn.fitted_head import start_with_fitted_head
from jaxcnn.optim import make_optimizer
from jaxcnn.preparation import check_same_settings, initialise, join_processes, prepare_run
from jaxcnn.run.workdir import Workdir
from jaxcnn.run_step import take_step
from jaxcnn.terminal import stage, with_bar
from jaxcnn.training_run import batches_from

LOWEST, HIGHEST = 1e-6, 10.0
"""Learning rates of the first step and, unless the loss diverges before, of the last."""
SMOOTHING = 0.9
"""Decay of the moving average of the loss, which is corrected for its start like Adam's moments."""
DIVERGED = 4.0
"""The test ends when the smoothed loss is so many times its lowest value."""
SPAN = 1.0
"""Difference of two logarithms of the rate over which the fall of the loss is measured."""


@dataclass(frozen=True)
class RangeTest:
    """The losses at rising learning rates.

    Attributes:
      rates: learning rate of each step.
      losses: smoothed loss of each step in nats.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest over the logarithm of the rate: a good one to start with.

        Raises:
          UserError: the loss does not fall, or is finite in the first step at most.
        """
        if len(self.losses) < 2:
            raise UserError("the loss is not finite at the lowest learning rate; the test needs other settings")
        # From one of many steps to the next, the loss changes by the choice of the pictures more than by the rate.
        apart = max(round(SPAN / math.log(self.rates[1] / self.rates[0])), 1)
        apart = min(apart, len(self.losses) - 1)
        changes = np.subtract(self.losses[apart:], self.losses[:-apart])
        if changes.min() >= 0:
            raise UserError("the loss does not fall at any learning rate; the test needs more steps or other settings")
        return self.rates[int(changes.argmin()) + apart // 2]

    @property
    def lowest(self) -> float:
        """The rate at which the loss is lowest; training diverges soon above it."""
        return self.rates[int(np.argmin(self.losses))]


def run_range_test(config: Config, workdir: str | Path, *, steps: int) -> RangeTest:
    """Trains for some steps at exponentially rising learning rates; several processes do so together.

    Args:
      config: the settings; the learning rate and its schedule have no effect.
      workdir: the folder that the run would have; it is neither created nor changed.
      steps: steps from `LOWEST` to `HIGHEST`.

    Raises:
      UserError: the settings or the data cannot be trained with.
    """
    join_processes(config)
    config = config.recorded()
    check_same_settings(config)
    run = prepare_run(config, Workdir(Path(workdir))).run
    if run.config.is_frozen:
        raise UserError("freeze is 'backbone': no steps are taken, so that the learning rate has no effect")
    growth = math.log(HIGHEST / LOWEST) / max(steps - 1, 1)

    def schedule(step: Any) -> Any:
        return LOWEST * jnp.exp(growth * jnp.asarray(step).astype(jnp.float32))

    optimizer = make_optimizer(run.config.optim, steps=steps, schedule=schedule)
    run = dataclasses.replace(run, optimizer=optimizer, schedule=schedule)
    with stage("preparing the network and its state"):
        _, state = initialise(run)
    # As the run does before its first step.
    if run.config.fit_head:
        state, _ = start_with_fitted_head(run, state)
    state = place_state(state, run.mesh)
    losses = list[float]()
    with (
        contextlib.closing(batches_from(run, 0, rows=run.rows)) as batches,
        stage(f"{steps:,} steps at rising learning rates"),
    ):
        for _, batch in zip(with_bar(range(steps), "steps", total=steps), batches, strict=False):
            state, metrics = take_step(run, state, batch, epoch=0)
            losses.append(float(metrics.loss / metrics.pictures))
            if has_diverged(losses):
                break
    smoothed = smooth(losses)
    return RangeTest(tuple(LOWEST * math.exp(growth * step) for step in range(len(smoothed))), tuple(smoothed))


def has_diverged(losses: Sequence[float]) -> bool:
    """Returns whether the last loss is not finite, or the smoothed loss far above its lowest value."""
    if not math.isfinite(losses[-1]):
        return True
    smoothed = smooth(losses)
    return smoothed[-1] > DIVERGED * min(smoothed)


def smooth(losses: Sequence[float]) -> list[float]:
    """Returns the moving average of losses, up to the first that is not finite."""
    average, smoothed = 0.0, list[float]()
    for step, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**step))
    return smoothed
