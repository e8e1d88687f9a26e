"""The records of the trainings behind the initial weights of a run, and behind its teachers."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.typed_json import decode

WARNING = "warning"
"""Heading of what to know of a training; see `leakage.describe_overlap`."""


@dataclass(frozen=True)
class Training:
    """A description of one training.

    Attributes:
      dataset: the name of the data set.
      license: the terms of the data set.
      recipe: settings and cost, as text by heading; what was not recorded is left out.
    """

    dataset: str
    license: str
    recipe: dict[str, str]


def record_earlier(earlier: Sequence[Training], path: Path, *, warning: str | None = None) -> None:
    """Records the trainings behind the initial weights of a run, or behind its teachers.

    Args:
      earlier: the trainings, from the first to the last.
      path: the file.
      warning: what to know of the last of them; it becomes a row of its recipe.
    """
    if warning is not None:
        *before, last = earlier
        earlier = (*before, dataclasses.replace(last, recipe=last.recipe | {WARNING: warning}))
    write_atomically(path, json.dumps([dataclasses.asdict(training) for training in earlier], indent=2) + "\n")


def read_earlier(path: Path) -> tuple[Training, ...]:
    """Reads the record of earlier trainings, or of the trainings behind the teachers. A run without any has none.

    Raises:
      UserError: it is damaged.
    """
    try:
        return decode(tuple[Training, ...], json.loads(path.read_text(encoding="utf-8")), "trainings")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}); train in a new workdir") from error
