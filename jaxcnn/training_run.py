"""A run: what stays the same from its first step to its last, and what follows from that alone."""

import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int64, Key

from jaxcnn import data
from jaxcnn.accumulation import check_parts
from jaxcnn.config import AugmentConfig, Config, ModelConfig
from jaxcnn.data.batches import begin_order
from jaxcnn.distributed import check_devices, local_rows, make_mesh, place_state
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer, make_schedule
from jaxcnn.processes import lead
from jaxcnn.state import TrainState, complete, create_state, describe_variables, first_state, zero_state
from jaxcnn.teachers import Teachers, read_teachers
from jaxcnn.weights import Weights


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to the last.

    Attributes:
      config: the settings.
      dataset: training and validation pictures.
      model: the network.
      optimizer: the optimizer, with the schedule in it.
      schedule: learning rate by step, counted from 0.
      steps_per_epoch: batches in an epoch.
      teachers: classifiers whose predictions are learned; None without.
    """

    config: Config
    dataset: data.Dataset
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps_per_epoch: int
    teachers: Teachers | None = None

    @property
    def key(self) -> Key[Array, ""]:
        """The key that all random numbers of the run are derived from."""
        return jax.random.key(self.config.seed)

    @property
    def mesh(self) -> Mesh | None:
        """All devices of the run; None if there is only one."""
        return make_mesh(self.config.parallel.fsdp)

    @property
    def rows(self) -> Int64[np.ndarray, " rows"] | None:
        """Positions in each batch that this process reads and computes; None: all."""
        return None if jax.process_count() == 1 else local_rows(self.config.batch_size, self.mesh)

    def augmentation(self, epoch: int) -> AugmentConfig:
        """Returns what the step of an epoch does to the pictures, without crops that were taken as they were read."""
        config = self.config.augmentation(epoch)
        return config if self.dataset.train.crop_scale is None else dataclasses.replace(config, crop_scale=None)

    @property
    def epochs(self) -> int:
        """Epochs of the whole run; 0 if all but the head is frozen."""
        return 0 if self.config.is_frozen else self.config.epochs

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def prepare(config: Config, dataset: data.Dataset) -> Run:
    """Builds the network and the optimizer for the settings and the data.

    Raises:
      UserError: the data has fewer than two classes, the devices do not fit the batch size, or a teacher does not fit
        the data.
    """
    check_devices(config.batch_size, fsdp=config.parallel.fsdp)
    check_parts(config, classes=len(dataset.names), devices=jax.device_count())
    if len(dataset.names) < 2:
        raise UserError(f"{dataset.name} has only the class {dataset.names[0]!r}; a classifier needs two or more")
    steps_per_epoch = data.steps_per_epoch(dataset.train, batch_size=config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    model = _with_common_precision(config.model)
    return Run(
        config=config,
        dataset=dataset.cropped(config.augment.crop_scale),
        model=registry.build_here(model, classes=len(dataset.names)),
        optimizer=make_optimizer(config.optim, steps=total_steps),
        schedule=make_schedule(config.optim, steps=total_steps),
        steps_per_epoch=steps_per_epoch,
        teachers=read_teachers(dataclasses.replace(config, model=model), dataset),
    )


def _with_common_precision(config: ModelConfig) -> ModelConfig:
    """Returns the settings with the precision that the leader has resolved: `auto` may be a matter of measurement."""
    if jax.process_count() == 1:
        return config
    precision = lead(lambda: registry.resolve_precision(config.precision))
    return dataclasses.replace(config, precision="bfloat16" if precision == "bfloat16" else "float32")


def initial_state(run: Run, weights: Weights | None = None) -> TrainState:
    """The state before the first step, a pure function of the run and the initial weights.

    Args:
      run: the run.
      weights: initial weights; without them the parameters are random. Their head is used if the classes are the same.

    Raises:
      UserError: the weights do not fit the network.
    """
    config = run.config
    side, averaged = config.data.image_size, config.optim.ema_decay > 0
    if weights is None:
        return create_state(run.key, model=run.model, optimizer=run.optimizer, image_size=side, averaged=averaged)
    # A head for other classes or features, or in another order, is of no use. Nothing but such a head is initialised:
    # compiling the random numbers of a whole network may take longer than fitting the head.
    with_head = weights.has_head_for(config.model, run.dataset.names, run.dataset.wnids)
    filled = weights.fill(describe_variables(run.model, side), with_head=with_head)
    variables = complete(filled, run.key, model=run.model, image_size=side)
    return first_state(variables, optimizer=run.optimizer, averaged=averaged)


def empty_state(run: Run) -> TrainState:
    """A state of zeros, laid out as the run needs it, for a checkpoint to be restored into."""
    config = run.config
    zeros = zero_state(
        run.model,
        optimizer=run.optimizer,
        image_size=config.data.image_size,
        averaged=config.optim.ema_decay > 0,
    )
    state: TrainState = place_state(zeros, run.mesh)
    return state


def start_order(run: Run, step: int) -> None:
    """Starts to shuffle the pictures for the epoch of a step, which goes on while the state of the run is made."""
    if step < run.total_steps and not run.config.balance:
        epoch = step // run.steps_per_epoch
        begin_order(seed=run.config.seed, epoch=epoch, count=len(run.dataset.train))


def batches_from(
    run: Run,
    step: int,
    *,
    rows: Int64[np.ndarray, " rows"] | None,
    place: Callable[[data.Batch], data.Batch] = lambda batch: batch,
) -> Generator[data.Batch]:
    """Yields the batches of a run; see `train_batches`.

    Args:
      run: the run.
      step: the step of the first batch, counted from 0.
      rows: positions in each batch that are read; None: all.
      place: what else the thread that reads does with each batch.
    """
    config = run.config
    return data.train_batches(
        run.dataset.train,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=step,
        balanced=config.balance,
        rows=rows,
        place=place,
    )
