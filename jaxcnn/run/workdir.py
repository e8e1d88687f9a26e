"""What a run keeps on disk: where each file of a workdir is, and the records made at its start.

config.json        the settings                      metrics.jsonl     one line per event of the run
classes.json       class names, wnids, data set      events.out.*      the same for TensorBoard
pictures.json      fingerprint of the split          calibration.json  the best checkpoint's temperature
environment.json   versions, hardware, command       evaluation.json   the best checkpoint, measured
earlier_sessions.json                                report.html       the run as a page
                   other settings and hardware       model.onnx        the best checkpoint, exported
earlier_trainings.json                               model.json        its description, for runtimes
                   of weights it started from        model/            its model card and an example
checkpoints/STEP/  parameters and training state
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from jaxcnn import config as settings
from jaxcnn import models
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.data import Fingerprint, is_named
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.paths import readable

UNREADABLE = "*?[\\"
"""Characters of a path under which Orbax writes checkpoints that it does not find again: it takes them for patterns."""

PLACES = ("data.source", "data.archive", "data.cache_dir", "model.cpu_kernels", "checkpoint_minutes")
"""Settings that say where and how, not what is trained: a complete run may be concluded again with others."""


@dataclass(frozen=True)
class Classes:
    """What the numbers of a classifier's outputs mean.

    Attributes:
      names: readable, one for each output.
      wnids: WordNet ids in the same order; empty where the data has none.
      dataset: the data set's name.
      license: the data set's terms.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...]
    dataset: str
    license: str


@dataclass(frozen=True)
class Workdir:
    """A run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Orbax's folder."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The log of the run."""
        return self.path / "metrics.jsonl"

    @property
    def earlier_sessions(self) -> Path:
        """What the run was trained with before its last session."""
        return self.path / "earlier_sessions.json"

    @property
    def earlier_trainings(self) -> Path:
        """What the weights that the run started from have learnt in."""
        return self.path / "earlier_trainings.json"

    @property
    def calibration(self) -> Path:
        """Temperature of the best checkpoint."""
        return self.path / "calibration.json"

    @property
    def evaluation(self) -> Path:
        """Metrics of the best checkpoint."""
        return self.path / "evaluation.json"

    @property
    def onnx(self) -> Path:
        """The exported model."""
        return self.path / "model.onnx"

    def read_config(self) -> Config:
        """The settings of the run.

        Raises:
          UserError: the folder is no workdir, or its record is damaged.
        """
        text = self._read("config.json")
        try:
            return settings.from_json(text)
        except UserError as error:
            raise UserError(f"{self.path / 'config.json'} is damaged ({error}); train in a new workdir") from error

    def read_data_config(self) -> DataConfig:
        """Where the run's pictures come from, found from any working directory; as `read_config`."""
        found, directory = self.read_config().data, self.read_environment().get("directory")
        if directory is None:
            return found

        def there(path: str) -> str:
            return os.path.join(directory, os.path.expanduser(path))

        return dataclasses.replace(
            found,
            source=found.source if is_named(found.source) else there(found.source),
            archive=None if found.archive is None else there(found.archive),
            cache_dir=there(found.cache_dir),
        )

    def read_classes(self) -> Classes:
        """The classes of the run, as `read_config`."""
        try:
            value = json.loads(self._read("classes.json"))
            return Classes(
                names=tuple(map(readable, value["names"])),  # an older run may have recorded bytes
                wnids=tuple(value["wnids"]),
                dataset=readable(value["dataset"]),
                license=value["license"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path / 'classes.json'} is damaged ({error}); train in a new workdir") from error

    def read_pictures(self) -> Fingerprint | None:
        """Fingerprint of the split when the run began; None in a run that is older than this record."""
        if not (self.path / "pictures.json").exists():
            return None
        try:
            return parse_fingerprint(json.loads(self._read("pictures.json")))
        except ValueError as error:
            raise UserError(f"{self.path / 'pictures.json'} is damaged ({error}); train in a new workdir") from error

    def read_environment(self) -> dict[str, str]:
        """Versions and hardware of the run's last session; empty if that was not recorded."""
        try:
            found = json.loads(self._read("environment.json"))
        except (UserError, ValueError):
            return {}
        return found if isinstance(found, dict) and all(isinstance(each, str) for each in found.values()) else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in the same folder meanwhile.

        Raises:
          UserError: another process does, or the folder cannot be written, or no checkpoint in it could be read.
        """
        self._check_path()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", blocking=False)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is training in {self.path}; wait for it or give another --workdir"
            ) from None
        except OSError as error:
            raise UserError(f"the workdir {self.path} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def check_settings(self, config: Config) -> None:
        """Raises a `UserError` that names the first difference, if the folder holds a run that cannot go on as asked.

        Other rates or more epochs may follow; another model or batch size may not, nor another order of the pictures,
        nor other ones held out: the model would be measured on pictures that it was trained on. A damaged record is
        told too, all before the pictures are read, which may take long.
        """
        if (self.path / "config.json").exists():
            self._check_settings(config)
            self.read_classes()
            self.read_pictures()

    def check_finished_settings(self, config: Config) -> None:
        """Raises a `UserError` that names the first difference to the settings of a run that has no step left to take.

        They would be recorded, and told in the model's card, though nothing was trained with them.
        """
        for (name, was), (_, now) in zip(_flat(self.read_config()), _flat(config), strict=True):
            if was != now and name not in PLACES:
                raise UserError(
                    f"the run in {self.path} has no step left to take, and was trained with {name} {was!r}, not "
                    f"{now!r}; give the same settings, more --epochs or another --workdir"
                )

    def check_data(self, classes: Classes, pictures: Fingerprint) -> None:
        """Raises a `UserError` if the run in the folder has other classes, or began with other pictures.

        One picture more or less, or under another name, changes which ones are held out.
        """
        if (self.path / "config.json").exists():
            self._check_classes(classes)
            self._check_pictures(pictures)

    def record(self, config: Config, classes: Classes) -> None:
        """Writes down settings, classes and environment."""
        self.path.mkdir(parents=True, exist_ok=True)
        here = environment() | {"precision": models.resolve_precision(config.model.precision)}
        write_atomically(self.path / "environment.json", json.dumps(here, indent=2) + "\n")
        write_atomically(self.path / "classes.json", json.dumps(dataclasses.asdict(classes), indent=2) + "\n")
        write_atomically(self.path / "config.json", settings.to_json(config))

    def record_pictures(self, pictures: Fingerprint) -> None:
        """Writes the fingerprint of the split."""
        write_atomically(self.path / "pictures.json", json.dumps(dataclasses.asdict(pictures), indent=2) + "\n")

    def _check_path(self) -> None:
        path = self.path.absolute().as_posix()
        wrong = next((each for each in path if each in UNREADABLE), None)
        if wrong is not None:
            raise UserError(
                f"the path of the workdir, {path}, has a {wrong} in it, with which checkpoints cannot be read again; "
                "rename that folder or give another --workdir"
            )
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the path of the workdir, {path}, has bytes in it that are not UTF-8, with which checkpoints cannot "
                "be written; rename that folder or give another --workdir"
            ) from None

    def _check_settings(self, config: Config) -> None:
        saved, asked = self.read_config(), config
        pairs = [("init_from", saved.init_from, asked.init_from)]
        pairs += [
            (f"model.{each.name}", getattr(saved.model, each.name), getattr(asked.model, each.name))
            for each in dataclasses.fields(ModelConfig)
            if each.name not in ("precision", "cpu_kernels")
        ]
        pairs += [(name, getattr(saved, name), getattr(asked, name)) for name in ("batch_size", "seed")]
        pairs += [
            (f"data.{name}", getattr(saved.data, name), getattr(asked.data, name))
            for name in ("image_size", "validation_fraction", "split_seed")
        ]
        for name, was, now in pairs:
            if was != now:
                raise UserError(
                    f"{self.path} holds a run with {name} {was!r}, not {now!r}; give the same or another --workdir"
                )

    def _check_classes(self, classes: Classes) -> None:
        saved = self.read_classes()
        for kind, old, new in (("names", saved.names, classes.names), ("wnids", saved.wnids, classes.wnids)):
            if old == new:
                continue
            i = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            was, now = (repr(each[i]) if i < len(each) else "nothing" for each in (old, new))
            raise UserError(
                f"{self.path} holds a run with other classes: {kind}[{i}] was {was}, the data has {now}; "
                "give the same data or another --workdir"
            )

    def _check_pictures(self, pictures: Fingerprint) -> None:
        saved = self.read_pictures()
        if saved is None or saved.has_same_split(pictures):
            return
        was, now = (f"{each.train:,} for training and {each.validation:,} for validation" for each in (saved, pictures))
        raise UserError(
            f"the pictures have changed since the run in {self.path} began: there were {was}, now there are "
            f"{now if now != was else 'as many, but others or in another order'}; it would be validated with pictures "
            "that it was trained on. Put the pictures back as they were, or give another --workdir"
        )

    def _read(self, name: str) -> str:
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist; give the workdir of a training run")
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{self.path} is not the workdir of a training run: it has no {name}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path / name} cannot be read: {error}") from error


def parse_fingerprint(value: Any) -> Fingerprint:
    """A fingerprint from JSON.

    Raises:
      ValueError: it is something else.
    """
    kinds = {each.name: each.type for each in dataclasses.fields(Fingerprint)}
    known: dict[str, Any] = {"decoder": 0} | value if isinstance(value, dict) else {}
    if {name: type(each) for name, each in known.items()} != kinds:
        raise ValueError("it does not record how the pictures were split")
    return Fingerprint(**known)


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by the name of its option."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", value


def environment() -> dict[str, str]:
    """Versions, hardware and command, to tell later how a result came about."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    return {
        "command": " ".join(sys.argv),
        "directory": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "devices": ", ".join(device.device_kind for device in jax.local_devices()),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    """The processor's marketing name, which `platform.processor` leaves out on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
