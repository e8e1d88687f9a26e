"""The sessions of a run: which of its steps were taken with which settings, on which machine."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxcnn import config as settings
from jaxcnn.config import Config
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.run.workdir import Classes, Workdir


@dataclass(frozen=True)
class Session:
    """Steps that were taken one after the other with the same settings on the same machine.

    Attributes:
      start: how many steps came before it.
      end: how many there were after it; None of the last one, which may go on.
      environment: as `Workdir.record` writes it; empty if that was not recorded.
    """

    start: int
    end: int | None
    config: Config
    environment: Mapping[str, str]


def read_sessions(run: Workdir) -> tuple[Session, ...]:
    """All sessions of a run, those in a row that differ in nothing but where and how they were started as one.

    Raises:
      UserError: a record is damaged.
    """
    earlier = _read_earlier(run)
    start = (earlier[-1].end or 0) if earlier else 0
    return _merge([*earlier, Session(start, None, run.read_config(), run.read_environment())])


def record_session(run: Workdir, config: Config, classes: Classes, *, step: int) -> None:
    """Writes down what the steps from `step` on are taken with, and keeps what those before were taken with."""
    known = read_sessions(run) if step else ()
    ended = [
        dataclasses.replace(each, end=step if each.end is None else min(each.end, step))
        for each in known
        if each.start < step  # later steps were lost, and are taken again
    ]
    records = [
        {"end": each.end, "config": json.loads(settings.to_json(each.config)), "environment": each.environment}
        for each in ended
    ]
    if records:
        write_atomically(run.earlier_sessions, json.dumps(records, indent=2) + "\n")
    else:
        run.earlier_sessions.unlink(missing_ok=True)
    run.record(config, classes)


def tell(sessions: Iterable[Session], describe: Callable[[Session], str]) -> str:
    """What a run was trained with, such as `until step 1,200 a; then b`; without steps if it was always the same."""
    told = [(describe(each), each.end) for each in sessions]
    *before, (last, _) = [list(group)[-1] for _, group in itertools.groupby(told, key=lambda each: each[0])]
    return "; ".join([*(f"until step {end:,} {text}" for text, end in before), f"then {last}" if before else last])


def _merge(sessions: Sequence[Session]) -> tuple[Session, ...]:
    merged: list[Session] = []
    for each in sessions:
        if merged and _like(merged[-1]) == _like(each):
            each = dataclasses.replace(each, start=merged.pop().start)
        merged.append(each)
    return tuple(merged)


def _like(session: Session) -> tuple[Any, ...]:
    own = ("command", "directory")
    return session.config, {name: value for name, value in session.environment.items() if name not in own}


def _read_earlier(run: Workdir) -> list[Session]:
    """The record of all sessions but the last; none in a run that has but one, or is older than this record."""
    try:
        records, start, found = json.loads(run.earlier_sessions.read_text(encoding="utf-8")), 0, []
        for each in records:
            config, environment = settings.from_json(json.dumps(each["config"])), each["environment"]
            if not isinstance(environment, dict) or type(each["end"]) is not int:
                raise TypeError("a value of the wrong kind")
            found.append(Session(start, each["end"], config, environment))
            start = each["end"]
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{run.earlier_sessions} is damaged ({error}); train in a new workdir") from error
