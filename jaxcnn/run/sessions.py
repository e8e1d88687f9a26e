"""The sessions of a run: which steps were taken with which settings, on which machine."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn import config as settings
from jaxcnn.config import Config
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.run.workdir import Classes, Workdir

FORMER_NAME = "earlier_sittings.json"
"""What earlier versions called `Workdir.earlier_sessions`."""


@dataclass(frozen=True)
class Session:
    """Consecutive steps that were taken with the same settings on the same machine.

    Attributes:
      start: steps taken before it.
      end: steps taken when it ended; None for the last session, which may still run.
      config: its settings.
      environment: its record from `Workdir.record`; empty if there is none.
    """

    start: int
    end: int | None
    config: Config
    environment: Mapping[str, str]


def read_sessions(workdir: Workdir) -> tuple[Session, ...]:
    """Reads all sessions of a run. Successive ones that differ only in command and directory count as one.

    Raises:
      UserError: a record is damaged.
    """
    earlier = _read_earlier(workdir)
    start = (earlier[-1].end or 0) if earlier else 0
    return _merge([*earlier, Session(start, None, workdir.read_config(), workdir.read_environment())])


def record_session(workdir: Workdir, config: Config, classes: Classes, *, step: int, cores: int | None = None) -> None:
    """Records that the steps after `step` are taken with these settings in this process, and what came before.

    Args:
      workdir: the run's folder.
      config: the settings.
      classes: the classes.
      step: steps taken before.
      cores: cores of all machines; None: of this one.

    Raises:
      UserError: a record is damaged.
    """
    known = read_sessions(workdir) if step else ()
    # Steps after the checkpoint at `step` were lost: no session keeps them.
    ended = [
        dataclasses.replace(session, end=step if session.end is None else min(session.end, step))
        for session in known
        if session.start < step
    ]
    records = [
        {
            "end": session.end,
            "config": json.loads(settings.to_json(session.config)),
            "environment": session.environment,
        }
        for session in ended
    ]
    if records:
        write_atomically(workdir.earlier_sessions, json.dumps(records, indent=2) + "\n")
    else:
        workdir.earlier_sessions.unlink(missing_ok=True)
    (workdir.path / FORMER_NAME).unlink(missing_ok=True)
    workdir.record(config, classes, cores=cores)


def describe_changes(sessions: Iterable[Session], describe: Callable[[Session], str]) -> str:
    """Describes one aspect of all sessions, such as `until step 1,200 sgd; then adam`.

    Args:
      sessions: the sessions of a run, at least one.
      describe: describes the aspect in one session. If all give the same text, that is the result.
    """
    described = [(describe(session), session.end) for session in sessions]
    # The last of successive sessions with the same text gives their end.
    *before, (last, _) = [list(group)[-1] for _, group in itertools.groupby(described, key=lambda pair: pair[0])]
    return "; ".join([*(f"until step {end:,} {text}" for text, end in before), f"then {last}" if before else last])


def _merge(sessions: Sequence[Session]) -> tuple[Session, ...]:
    """Joins successive sessions with the same settings on the same machine."""
    merged: list[Session] = []
    for session in sessions:
        if merged and _identity(merged[-1]) == _identity(session):
            session = dataclasses.replace(session, start=merged.pop().start)
        merged.append(session)
    return tuple(merged)


def _identity(session: Session) -> tuple[Any, ...]:
    """What two sessions have in common if they count as one: everything but how and where they were started."""
    ignored = ("command", "directory")
    return session.config, {name: value for name, value in session.environment.items() if name not in ignored}


def _read_earlier(workdir: Workdir) -> list[Session]:
    """Reads the record of all sessions but the last; without a record, there are none."""
    path = _earlier_path(workdir)
    sessions, start = list[Session](), 0
    try:
        for record in json.loads(path.read_text(encoding="utf-8")):
            config, environment = settings.from_json(json.dumps(record["config"])), record["environment"]
            if not isinstance(environment, dict) or type(record["end"]) is not int:
                raise TypeError("a value of the wrong kind")
            sessions.append(Session(start, record["end"], config, environment))
            start = record["end"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}); train in a new workdir") from error
    return sessions


def _earlier_path(workdir: Workdir) -> Path:
    former = workdir.path / FORMER_NAME
    return former if former.exists() and not workdir.earlier_sessions.exists() else workdir.earlier_sessions
