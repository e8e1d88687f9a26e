"""The lineage of weights: describes the training that made them, after those that made its initial weights."""

from collections.abc import Sequence

from jaxcnn.models import registry
from jaxcnn.models.pretrained import Pretrained
from jaxcnn.run.checkpoint import TrainedModel
from jaxcnn.run.cost import describe_arithmetic, describe_time
from jaxcnn.run.describe import (
    counted,
    describe_augmentation,
    describe_head,
    describe_network,
    describe_optimizer,
    describe_precision,
    describe_software,
    describe_training,
)
from jaxcnn.run.earlier_trainings import Training, read_earlier
from jaxcnn.run.metrics_log import read_log
from jaxcnn.run.sessions import Session, describe_changes, read_sessions
from jaxcnn.run.workdir import Workdir


def trainings(run: Workdir, trained: TrainedModel) -> tuple[Training, ...]:
    """Returns every training behind the weights of a run, from the first to the run itself.

    Raises:
      UserError: the record of the earlier trainings is damaged.
    """
    own = Training(trained.dataset, trained.license, _recipe(run, trained))
    return (*read_earlier(run.earlier_trainings), own)


def describe_pretrained(weights: Pretrained) -> Training:
    """Describes the training behind weights that others trained, as far as they published it."""
    parameters = {path: values for path, values in weights.tensors.items() if path.startswith("params/")}
    rows = {
        "network": describe_network(weights.model),
        "parameters": f"{registry.count_parameters(parameters):,}",
        "weights": str(weights.origin),
        "pictures": f"{weights.side}x{weights.side} pixels, the middle {weights.crop:.3g} of the shorter side, "
        f"{weights.filter}",
    }
    if weights.top1 is not None:
        rows["published top-1 accuracy"] = f"{weights.top1:.3f} on the validation split"
    terms = {"weights": weights.license, "pictures": weights.dataset_license}
    return Training(weights.dataset, "; ".join(f"{what}: {text}" for what, text in terms.items() if text), rows)


def _describe_steps(step: int, sessions: Sequence[Session]) -> dict[str, str]:
    """Describes how steps were taken, by heading."""
    return {
        "this checkpoint": f"after {counted(step, 'step')}",
        "optimizer": describe_changes(sessions, lambda session: describe_optimizer(session.config.optim)),
        "augmentation": describe_changes(sessions, lambda session: describe_augmentation(session.config.augment)),
    }


def _describe_teacher(training: Training) -> str:
    """Describes a training behind a teacher in a phrase."""
    network = training.recipe.get("network", "a network")
    return f"{network}, trained on {training.dataset}" + (f" ({training.license})" if training.license else "")


def _recipe(run: Workdir, trained: TrainedModel) -> dict[str, str]:
    """Describes a run's settings and cost, by heading."""
    config, log, sessions = trained.config, read_log(run.metrics), read_sessions(run)
    # Settings, with the settings of earlier sessions where they differ.
    rows = {
        "network": describe_network(config.model),
        "parameters": f"{registry.count_parameters(trained.variables['params']):,}",
        "schedule": describe_changes(
            sessions, lambda session: describe_training(session.config, steps_per_epoch=log.steps_per_epoch)
        ),
        # Without steps these have no effect.
        **({} if config.is_frozen else _describe_steps(trained.step, sessions)),
        "precision": describe_changes(
            sessions, lambda session: describe_precision(session.config.model, session.environment)
        ),
    }
    if teachers := read_earlier(run.teachers):
        rows["teachers"] = "; ".join(map(_describe_teacher, teachers))
    if log.heads:
        rows["classifier"] = describe_head(log.heads[-1])
    # The cost, as far as log and environment were recorded.
    if log.train:
        rows["arithmetic"] = describe_arithmetic(config, log, classes=len(trained.names))
    if all(session.environment for session in sessions):
        if log.train:
            rows["time"] = describe_time(log, sessions)
        rows["software"] = describe_changes(sessions, lambda session: describe_software(session.environment))
    return rows
