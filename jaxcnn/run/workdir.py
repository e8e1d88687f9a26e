"""A run's folder: where each of its files is, and the records that are written when it starts.

config.json        the settings                      metrics.jsonl     one line per event of the run
classes.json       class names, wnids, data set      events.out.*      the same for TensorBoard
pictures.json      fingerprint of the split          calibration.json  the best checkpoint's temperature
environment.json   versions, hardware, command       evaluation.json   the best checkpoint, measured
earlier_sessions.json                                report.html       the run as a page
                   settings and hardware before      model.onnx        the best checkpoint, exported
earlier_trainings.json                               model.json        its description, for runtimes
                   of the initial weights            model/            its model card and an example
teachers.json      trainings of the teachers         predictions.csv   what it says about each validation picture
checkpoints/STEP/  parameters and training state     tracking.json     its id in other logs
note.txt           what the user noted of the run
"""

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLock

from jaxcnn import config as settings
from jaxcnn.checksum import ChecksumError, seal, unseal
from jaxcnn.config import Config, DataConfig
from jaxcnn.data import Fingerprint, is_named
from jaxcnn.disk import remedy, sync, write_atomically
from jaxcnn.errors import UserError
from jaxcnn.paths import readable
from jaxcnn.run.earlier_trainings import read_earlier
from jaxcnn.run.environment import environment
from jaxcnn.run.file_lock import lock_file
from jaxcnn.run.flat_settings import find_change, find_fixed_change
from jaxcnn.terminal import stage
from jaxcnn.typed_json import decode

UNREADABLE = "*?[\\"
"""Characters of a path that Orbax takes for a pattern when it lists checkpoints, so that it does not find them."""

DAMAGED = ".damaged"
"""Suffix of folders of damaged checkpoints."""

LOCK = ".lock"
"""The file that a process locks while it trains."""

BEGUN = ("checkpoints", "metrics.jsonl", "events.out.*", "environment.json", "classes.json")
"""What is created in a workdir before its `config.json`, besides the lock."""


@dataclass(frozen=True)
class Classes:
    """The classes of a run, and the data set that they come from.

    Attributes:
      names: readable names; the position is the class index.
      wnids: WordNet ids in the same order; empty if the data set has none.
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
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Log of the run."""
        return self.path / "metrics.jsonl"

    @property
    def earlier_sessions(self) -> Path:
        """Record of all sessions but the last."""
        return self.path / "earlier_sessions.json"

    @property
    def earlier_trainings(self) -> Path:
        """Record of the trainings behind the initial weights."""
        return self.path / "earlier_trainings.json"

    @property
    def teachers(self) -> Path:
        """Record of the trainings behind the teachers."""
        return self.path / "teachers.json"

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
        """Exported model."""
        return self.path / "model.onnx"

    def read_config(self) -> Config:
        """The settings of the run.

        Raises:
          UserError: the folder is not a workdir, or the record is damaged.
        """
        return self._parse("config.json", settings.from_json)

    def read_data_config(self) -> DataConfig:
        """Where the pictures of the run come from, with paths that are valid in any working directory.

        Raises:
          UserError: as `read_config`.
        """
        config, directory = self.read_config().data, self.read_environment().get("directory")
        # Without a record of the directory, relative paths cannot be resolved.
        if directory is None:
            return config

        def absolute(path: str) -> str:
            return os.path.join(directory, os.path.expanduser(path))

        return dataclasses.replace(
            config,
            source=config.source if is_named(config.source) else absolute(config.source),
            archive=None if config.archive is None else absolute(config.archive),
            cache_dir=absolute(config.cache_dir),
        )

    def read_classes(self) -> Classes:
        """The classes of the run.

        Raises:
          UserError: as `read_config`.
        """
        return self._parse("classes.json", _parse_classes)

    def read_pictures(self) -> Fingerprint | None:
        """The fingerprint of the split when the run began; None in a run of an earlier version, without this record.

        Raises:
          UserError: the record is damaged.
        """
        if not (self.path / "pictures.json").exists():
            return None
        return self._parse("pictures.json", lambda text: decode(Fingerprint, json.loads(text), "pictures"))

    @property
    def note(self) -> Path:
        """What the user noted of the run, as text."""
        return self.path / "note.txt"

    def read_note(self) -> str:
        """What the user noted of the run; empty without a note.

        Raises:
          UserError: the file cannot be read.
        """
        return self._read(self.note.name).strip() if self.note.exists() else ""

    def read_environment(self) -> dict[str, str]:
        """Versions and hardware of the last session, as from `environment`; empty without a valid record."""
        try:
            found = unseal(json.loads(self._read("environment.json")))
        except (UserError, ValueError, RecursionError, ChecksumError):
            return {}
        return found if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()) else {}

    @property
    def has_run(self) -> bool:
        """Whether a run has been recorded in this folder."""
        return (self.path / "config.json").exists()

    def resolve(self, config: Config) -> Config:
        """Returns the settings with store, fit, crop and filter of the run in this folder, if there is one, where open.

        So is the batch size if the one given was too large for the training pictures on the devices of the run: it is
        reduced when a run begins, see `Config.fit_batch`.

        Raises:
          UserError: as `read_config`.
        """
        given = config.data
        if not self.has_run:
            return config
        recorded, pictures = self.read_config(), self.read_pictures()
        fit, crop = given.fit or recorded.data.fit, given.crop
        if fit == recorded.data.fit and crop is None:
            crop = recorded.data.crop
        store = recorded.data.store if given.store == "auto" else given.store
        settings = dataclasses.replace(
            given, store=store, fit=fit, crop=crop, filter=given.filter or recorded.data.filter
        )
        batch_size = config.batch_size
        if pictures is not None:
            devices = len(self.read_environment().get("devices", "").split(", "))
            if config.fit_batch(count=pictures.train, devices=devices) != batch_size:
                batch_size = recorded.batch_size
        return dataclasses.replace(config, data=settings, batch_size=batch_size)

    @contextmanager
    def locked(self, *, seconds: float = 0.0) -> Iterator[None]:
        """Creates the folder, and keeps other processes from training in it until the context ends.

        If it ends without a run in the folder, because one was refused, everything that was created in it is removed.

        Args:
          seconds: how long to wait for another process that trains in it.

        Raises:
          UserError: another process trains in it, it cannot be written, or its checkpoints could not be read again.
        """
        # Before the folder is created: a refused path leaves nothing behind.
        self.check_path()
        found = [path for path in (self.path, *self.path.parents) if path.exists()]
        before = set(self.path.iterdir()) if self.path.is_dir() else set()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):  # The folder above may be another user's.
                sync(self.path.absolute().parent)
        except OSError as error:
            reason = f"{error.strerror}; give another --workdir"
            raise UserError(f"the workdir {self.path} cannot be written: {reason}") from error
        name, busy = f"the workdir {self.path}", f"another process is training in {self.path}"
        with stage(f"waiting for the last session in {self.path} to end"):
            lock = lock_file(self.path / LOCK, name=name, busy=busy, seconds=seconds)
        try:
            yield
        finally:
            is_refused = not self.has_run
            # Before the release: after it, another process may begin a run here.
            if is_refused:
                self._remove_new(before, keep_lock=isinstance(lock, SoftFileLock))
            lock.release()
            if is_refused:
                self._remove_folders(found)

    def _remove_new(self, before: set[Path], *, keep_lock: bool) -> None:
        """Removes what a run has begun in the folder and was not there before.

        The file of a lock may go while it is locked: who opened it before sees that it has no name, and makes a new
        one. A file that locks by its existence goes with the release.
        """
        for path in {path for pattern in BEGUN for path in self.path.glob(pattern)} - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        lock = self.path / LOCK
        if lock not in before and not keep_lock:
            with suppress(PermissionError):  # Windows removes no file that is open.
                lock.unlink()

    def _remove_folders(self, existing: Container[Path]) -> None:
        """Removes the folders that were created for a run, if they are empty."""
        for folder in itertools.takewhile(lambda folder: folder not in existing, (self.path, *self.path.parents)):
            with suppress(OSError):  # Another process may have begun a run beside it.
                folder.rmdir()

    def check_path(self) -> None:
        """Raises a `UserError` if Orbax could not read checkpoints under this path again."""
        path = self.path.absolute().as_posix()
        wrong = next((character for character in path if character in UNREADABLE), None)
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

    def check_resumable(self, config: Config) -> None:
        """Raises a `UserError` if the folder holds a run that cannot be resumed with these settings.

        The message names the first setting that differs. Learning rate, augmentation and the number of epochs may
        change. The network, the batch size and the order of the pictures may not, nor which pictures are held out: the
        model would be validated with pictures that it was trained on. Damaged records are refused too.

        Reads no pictures, so that a mistake is reported before they are decoded, which can take long.
        """
        if self.has_run:
            self._check_settings(config)
            # Raise an error if they are damaged. The last two are needed at the end only.
            self.read_classes()
            self.read_pictures()
            read_earlier(self.earlier_trainings)
            read_earlier(self.teachers)

    def check_same_data(self, classes: Classes, pictures: Fingerprint) -> None:
        """Raises a `UserError` if the folder holds a run with other classes or another split of the pictures.

        A picture that was added, removed or renamed changes which pictures are held out.
        """
        if self.has_run:
            self._check_classes(classes)
            self._check_pictures(pictures)

    def check_unchanged(self, config: Config, *, advice: str) -> None:
        """Raises a `UserError` that names the first setting that differs from the settings of the run.

        For a run without steps left: its records and its model card would name settings that nothing was trained with.

        Args:
          config: the settings.
          advice: what would let the run go on.
        """
        if change := find_change(self.read_config(), config):
            raise UserError(
                f"the run in {self.path} has no step left to take, and was trained with {change}; give the same "
                f"settings, {advice} or another --workdir"
            )

    def record(self, config: Config, classes: Classes, *, cores: int | None = None) -> None:
        """Writes the records of settings, classes and environment, with the cores of all machines if given."""
        from jaxcnn.models import registry

        self.path.mkdir(parents=True, exist_ok=True)
        here = environment() | {"precision": registry.resolve_precision(config.model.precision)}
        if cores is not None:
            here["cores"] = str(cores)
        self._write("environment.json", here)
        self._write("classes.json", dataclasses.asdict(classes))
        # Last: a folder with this file holds a run.
        self._write("config.json", json.loads(settings.to_json(config)))

    def record_early_stopping(self, patience: int | None) -> None:
        """Replaces `early_stopping` in the record of the settings: its value ends the run without another step."""
        config = dataclasses.replace(self.read_config(), early_stopping=patience)
        self._write("config.json", json.loads(settings.to_json(config)))

    def record_pictures(self, pictures: Fingerprint) -> None:
        """Writes the fingerprint of the split."""
        self._write("pictures.json", dataclasses.asdict(pictures))

    def write_note(self, text: str) -> None:
        """Writes the user's note; what is not UTF-8 in it is replaced."""
        write_atomically(self.note, readable(text) + "\n")

    def _write(self, name: str, record: dict[str, Any]) -> None:
        """Writes a record with its checksum."""
        write_atomically(self.path / name, json.dumps(seal(record), indent=2) + "\n")

    def _check_settings(self, config: Config) -> None:
        if change := find_fixed_change(self.read_config(), config):
            raise UserError(f"{self.path} holds a run with {change}; give the same value, or another --workdir")

    def _check_classes(self, classes: Classes) -> None:
        recorded = self.read_classes()
        for kind, old, new in (("names", recorded.names, classes.names), ("wnids", recorded.wnids, classes.wnids)):
            pairs = itertools.zip_longest(map(repr, old), map(repr, new), fillvalue="nothing")
            for index, (was, now) in enumerate(pairs):
                if was != now:
                    raise UserError(
                        f"{self.path} holds a run with other classes: {kind}[{index}] was {was}, the data has {now}; "
                        "give the same data or another --workdir"
                    )

    def _check_pictures(self, pictures: Fingerprint) -> None:
        recorded = self.read_pictures()
        if recorded is None or recorded.has_same_split(pictures):
            return
        # The counts show most changes; some, such as renamed pictures, leave them as they were.
        was, now = (
            f"{split.train:,} for training and {split.validation:,} for validation" for split in (recorded, pictures)
        )
        raise UserError(
            f"the pictures have changed since the run in {self.path} began: there were {was}, now there are "
            f"{now if now != was else 'as many, but others or in another order'}; it would be validated with pictures "
            "that it was trained on. Put the pictures back as they were, or give another --workdir"
        )

    def _parse[T](self, name: str, parse: Callable[[str], T]) -> T:
        text = self._read(name)
        try:
            return parse(json.dumps(unseal(json.loads(text))))
        except (ValueError, RecursionError, KeyError, TypeError, ChecksumError, UserError) as error:
            raise UserError(f"{self.path / name} is damaged ({error}); train in a new workdir") from error

    def _read(self, name: str) -> str:
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist; give the workdir of a training run")
        if self.path.is_file():
            raise UserError(f"{self.path} is a file; give the workdir of a training run, which is a folder")
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(
                f"{self.path} is not the workdir of a training run: it has no {name}; give the folder of a run"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            advice = (isinstance(error, OSError) and remedy(error)) or "check the file"
            raise UserError(f"{self.path / name} cannot be read: {reason}; {advice} and run again") from error


def _parse_classes(text: str) -> Classes:
    value = json.loads(text)
    return Classes(
        names=tuple(map(readable, value["names"])),  # Earlier versions recorded file names that are not UTF-8.
        wnids=tuple(value["wnids"]),
        dataset=readable(value["dataset"]),
        license=value["license"],
    )
