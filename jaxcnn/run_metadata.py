"""The metadata of a run's best checkpoint."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from jaxcnn.config import Config, DataConfig
from jaxcnn.data import Resize
from jaxcnn.metadata import Metadata
from jaxcnn.paths import readable
from jaxcnn.run.checkpoint import TrainedModel
from jaxcnn.run.lineage import trainings
from jaxcnn.run.workdir import Workdir
from jaxcnn.version import __version__


def describe_run(run: Workdir, trained: TrainedModel) -> Metadata:
    """Returns the metadata of a run's best checkpoint, without calibration and quantization.

    Raises:
      UserError: a record of the run is damaged.
    """
    side, classes = trained.config.data.image_size, len(trained.names)
    return Metadata(
        names=trained.names,
        wnids=trained.wnids,
        image_size=(side, side),
        resize=Resize.of(trained.config.data),
        dataset=trained.dataset,
        metrics=trained.metrics,
        step=trained.step,
        config=_portable(trained.config),
        pictures=run.read_pictures(),
        license=trained.license,
        trainings=trainings(run, trained),
        author="jaxcnn",
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        description=f"{trained.config.model.name} classifier of {classes} classes, trained on {trained.dataset}",
    )


def _portable(config: Config) -> Config:
    """Returns the settings without the paths where this machine keeps archives, caches and other runs."""
    defaults = DataConfig()
    data = dataclasses.replace(
        config.data,
        source=readable(config.data.source),
        archive=defaults.archive,
        cache_dir=defaults.cache_dir,
    )
    init_from = None if config.init_from is None else _name(config.init_from)
    teachers = tuple(map(_name, config.distill.teachers))
    distill = dataclasses.replace(config.distill, teachers=teachers)
    return dataclasses.replace(config, data=data, init_from=init_from, distill=distill)


def _name(source: str) -> str:
    """Returns the name of a file or folder with weights, without its path; `.` and `/` have no other."""
    return readable(Path(source).name or source)
