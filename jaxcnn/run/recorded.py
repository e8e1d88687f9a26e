"""Reads what a run has recorded of itself, and finds runs in folders."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn.config import Config
from jaxcnn.data import Fingerprint
from jaxcnn.errors import UserError
from jaxcnn.run.metrics_log import RunLog, is_stalled, read_log
from jaxcnn.run.paired import Answer
from jaxcnn.run.sessions import Session, read_sessions
from jaxcnn.run.workdir import DAMAGED, Classes, Workdir

DEPTH = 4
"""Levels of folders in which runs are looked for: links may lead back up."""


@dataclass(frozen=True)
class RecordedRun:
    """The records of a run.

    Attributes:
      name: what tables call it.
      workdir: its folder.
      sessions: its sessions.
      classes: its classes and data set.
      pictures: fingerprint of its split; None in a run of an earlier version.
      log: its metrics.
      evaluation: the record of its best checkpoint; None if the run has not ended or goes on after its end, or if
        the record is about another checkpoint.
    """

    name: str
    workdir: Workdir
    sessions: tuple[Session, ...]
    classes: Classes
    pictures: Fingerprint | None
    log: RunLog
    evaluation: Mapping[str, Any] | None

    @property
    def config(self) -> Config:
        """The settings of the last session."""
        return self.sessions[-1].config

    @property
    def environment(self) -> Mapping[str, str]:
        """The machine of the last session."""
        return self.sessions[-1].environment

    @property
    def scores(self) -> dict[str, float]:
        """The metrics of the best checkpoint, as far as it was measured: of an unfinished run those in its log."""
        if self.evaluation is not None:
            return {name: self.evaluation[name] for name in ("top1", "top5", "loss", "ece")}
        best = self.log.best
        if best is None:
            return {}
        return {"top1": best.top1, "top5": best.top5, "loss": best.loss, "ece": best.ece}

    @property
    def count(self) -> int | None:
        """The number of validation pictures; None if it is not recorded."""
        if self.evaluation is not None:
            return int(self.evaluation["count"])
        return self.pictures.validation if self.pictures else None


def find_runs(paths: Sequence[Path]) -> list[RecordedRun]:
    """Reads the runs that paths name: workdirs, or folders that hold workdirs. Each run counts once.

    Raises:
      UserError: a path holds no run, or a record is damaged.
    """
    workdirs: dict[Path, Path] = {}
    for path in paths:
        found = list(_find_workdirs(path))
        if not found:
            reason = "has no run in it" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
            raise UserError(f"{path} {reason}; give workdirs of training runs, or a folder of them")
        workdirs |= {folder.resolve(): folder for folder in found if folder.resolve() not in workdirs}
    names = _name(list(workdirs.values()))
    return [read_run(folder, name) for folder, name in zip(workdirs.values(), names, strict=True)]


def _find_workdirs(path: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yields the workdirs at a path and in its folders, up to some depth; a workdir holds no others."""
    if (path / "config.json").exists() and (path / "classes.json").exists():
        yield path
    elif depth and path.is_dir():
        for folder in sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")):
            yield from _find_workdirs(folder, depth - 1)


def _name(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths that distinguish all folders."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def read_run(folder: Path, name: str) -> RecordedRun:
    """Reads the records of a run.

    Raises:
      UserError: the folder is not a workdir, or a record is damaged.
    """
    workdir = Workdir(folder)
    sessions, log, evaluation = read_sessions(workdir), read_log(workdir.metrics), _read_evaluation(workdir.evaluation)
    end = find_end(sessions[-1].config, log)
    # A record of an earlier version has no step. Without a log, nothing says that it is about another checkpoint.
    is_of_best = evaluation and (not log.validation or _is_best(workdir, evaluation.get("step", end), end))
    return RecordedRun(
        name=name,
        workdir=workdir,
        sessions=sessions,
        classes=workdir.read_classes(),
        pictures=workdir.read_pictures(),
        log=log,
        evaluation=evaluation if is_of_best else None,
    )


def is_finished(workdir: Workdir) -> bool:
    """Returns whether a run has ended and its best checkpoint was measured and exported, by its records.

    The times of the files would not do: a copy of a workdir has the times at which it was made, and the user may have
    measured and exported a run that has not ended. A run with a damaged record has not ended: training reports it.
    """
    try:
        end = find_end(workdir.read_config(), read_log(workdir.metrics))
    except UserError:
        return False
    records = (workdir.evaluation, workdir.onnx.with_suffix(".json"))
    return workdir.onnx.exists() and all(_is_best(workdir, _read_step(path), end) for path in records)


def find_end(config: Config, log: RunLog) -> int | None:
    """Returns the step of the best checkpoint of a run that has ended; None if it goes on.

    A run ends with the last epoch of its settings, early by their patience, or as its author concludes it before.
    A training itself goes by its last checkpoint, see `has_steps_left`: after a kill, the log may be an epoch ahead.

    Args:
      config: the settings of the last session.
      log: the metrics of the run.
    """
    if log.ends:
        return log.ends[-1].step
    best = log.best
    if best is None:
        return None
    epochs, history = 0 if config.is_frozen else config.epochs, [record.top1 for record in log.validation]
    has_ended = log.validation[-1].epoch >= epochs or is_stalled(history, config.early_stopping)
    return best.step if has_ended else None


def _is_best(workdir: Workdir, step: object, end: int | None) -> bool:
    """Returns whether a checkpoint is the best of a run that has ended, or takes the place of one that is damaged.

    Args:
      workdir: the folder of the run.
      step: the step of the checkpoint; None if that is not known.
      end: the step of the best one, from `find_end`.
    """
    if step is None or end is None:
        return False
    best, damaged = (workdir.checkpoints / f"{end}{suffix}" for suffix in ("", DAMAGED))
    return step == end or (damaged.exists() and not best.exists())


def _read_step(path: Path) -> object:
    """Returns the step of the checkpoint that a record is about; None if there is no such record."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        return json.loads(path.read_text(encoding="utf-8")).get("step")
    return None


def _read_evaluation(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(found[name], int | float) for name in ("top1", "top5", "loss", "ece", "count")):
            assert isinstance(found, dict)
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        pass
    raise UserError(
        f"{path} is not the record of an evaluation; remove it and write it again with: "
        f"python -m jaxcnn.evaluate {path.parent}"
    )


def read_answers(run: RecordedRun) -> dict[str, Answer] | None:
    """Reads the predictions of a run for its validation pictures, by file; None if it has kept none, or goes on.

    Raises:
      UserError: the file of predictions cannot be read.
    """
    path = run.workdir.path / "predictions.csv"
    if run.evaluation is None:
        return None
    try:
        # Names of files may hold bytes that are not UTF-8.
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return {row["file"]: Answer(row["true_class"], row["predicted_class"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        return None
    except (OSError, KeyError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as predictions ({error!r}); remove it and write it again with: "
            f"python -m jaxcnn.evaluate {path.parent}"
        ) from error
