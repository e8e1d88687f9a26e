"""What a run recorded of itself while it trained, read back."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLog:
    """The records of a run in the order of the steps.

    Attributes:
      train: a record for every few seconds.
      validation: a record for every epoch.
    """

    train: list[dict[str, float]]
    validation: list[dict[str, float]]

    def validation_of(self, step: int) -> dict[str, float] | None:
        """The validation record of the checkpoint of a step; None if that was not measured."""
        return next((record for record in self.validation if record["step"] == step), None)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one epoch; None before the first is over."""
        return round(self.validation[-1]["step"] / self.validation[-1]["epoch"]) if self.validation else None

    def seconds(self, batch_size: int, *, start: int = 0, end: int | None = None) -> float:
        """Time spent in training steps: without evaluation, pauses, and steps that were lost and repeated.

        Args:
          start: how many steps come before those that are asked for.
          end: how many there are after them; all, if None.
        """
        total, before = 0.0, float(start)
        for record in self.train:
            if start < record["step"] <= (math.inf if end is None else end):
                total += (record["step"] - before) * batch_size / record["images_per_second"]
                before = record["step"]
        return total

    def steps_by_resolution(self, planned: Callable[[int], int]) -> dict[int, int]:
        """Steps taken at each resolution.

        Args:
          planned: the resolution of an epoch, counted from 0, by the settings; older records do not tell theirs.
        """
        steps, before = dict[int, int](), 0
        for record in self.train:
            epoch, step = max(math.ceil(record["epoch"]) - 1, 0), int(record["step"])
            side = int(record.get("resolution", planned(epoch)))
            steps[side] = steps.get(side, 0) + step - before
            before = step
        return steps


def read_log(path: Path) -> RunLog:
    """Reads `metrics.jsonl`.

    A resumed run goes on from its checkpoint: its start overrules all records of later steps, and a record those of its
    kind with the same or a later step, as older logs do not tell of starts. Half a line, left by a killed process, is
    skipped.
    """
    log = RunLog([], [])
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        kind = record.pop("kind", None) if isinstance(record, dict) else None
        if kind == "start":
            for records in (log.train, log.validation):
                _forget(records, after=float(record["step"]))
        if kind not in ("train", "validation"):
            continue
        records = log.train if kind == "train" else log.validation
        _forget(records, after=record["step"] - 1.0)
        records.append({name: float(value) for name, value in record.items()})
    return log


def _forget(records: list[dict[str, float]], *, after: float) -> None:
    while records and records[-1]["step"] > after:
        records.pop()
