"""Where weights come from: the training that made them, and those that made the weights that it started from."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn import models
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.run.checkpoint import TrainedModel
from jaxcnn.run.cost import describe_arithmetic, describe_time
from jaxcnn.run.describe import (
    counted,
    describe_augmentation,
    describe_network,
    describe_optimizer,
    describe_precision,
    describe_software,
    describe_training,
)
from jaxcnn.run.metrics_log import read_log
from jaxcnn.run.sessions import read_sessions, tell
from jaxcnn.run.workdir import Workdir


@dataclass(frozen=True)
class Training:
    """A training, in words.

    Attributes:
      dataset: the name of the data set.
      license: the data set's terms.
      recipe: how it was done and what it cost, by what each is called, as far as it was recorded.
    """

    dataset: str
    license: str
    recipe: dict[str, str]


def trainings(run: Workdir, trained: TrainedModel) -> tuple[Training, ...]:
    """All that the weights of a run have learnt in, the first training first and its own last.

    Raises:
      UserError: the record of those before its own is damaged.
    """
    own = Training(trained.dataset, trained.license, _recipe(run, trained))
    return (*_read_earlier(run.earlier_trainings), own)


def record_earlier(earlier: Sequence[Training], path: Path) -> None:
    """Writes down, at the start of a run, what the weights that it starts from have learnt in."""
    write_atomically(path, json.dumps([dataclasses.asdict(each) for each in earlier], indent=2) + "\n")


def parse_trainings(value: Any) -> tuple[Training, ...]:
    """Trainings from JSON.

    Raises:
      ValueError: it is something else.
    """
    if not isinstance(value, list):
        raise ValueError("no list of trainings")
    return tuple(map(_parse_training, value))


def _parse_training(value: Any) -> Training:
    match value:
        case {"dataset": str(dataset), "license": str(license), "recipe": dict(recipe)}:
            if all(isinstance(text, str) for text in recipe.values()):
                return Training(dataset, license, recipe)
    raise ValueError("a training without dataset, license and recipe in words")


def _read_earlier(path: Path) -> tuple[Training, ...]:
    """The record; none if the run began with random weights."""
    try:
        return parse_trainings(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); train in a new workdir") from error


def _recipe(run: Workdir, trained: TrainedModel) -> dict[str, str]:
    config, log, sessions = trained.config, read_log(run.metrics), read_sessions(run)
    rows = {
        "network": describe_network(config.model),
        "parameters": f"{models.count_parameters(trained.variables['params']):,}",
        "schedule": tell(sessions, lambda each: describe_training(each.config, steps_per_epoch=log.steps_per_epoch)),
        "this checkpoint": f"after {counted(trained.step, 'step')}",
        "optimizer": tell(sessions, lambda each: describe_optimizer(each.config.optim)),
        "augmentation": tell(sessions, lambda each: describe_augmentation(each.config.augment)),
        "precision": tell(sessions, lambda each: describe_precision(each.config.model, each.environment)),
    }
    if log.train:
        rows["arithmetic"] = describe_arithmetic(config, log, classes=len(trained.names))
    if all(each.environment for each in sessions):
        if log.train:
            rows["time"] = describe_time(log, sessions)
        rows["software"] = tell(sessions, lambda each: describe_software(each.environment))
    return rows
