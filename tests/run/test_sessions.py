"""The sessions of a run that is resumed with other settings or on another machine."""

import dataclasses
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.config import OptimConfig
from jaxcnn.errors import UserError
from jaxcnn.presets import digits
from jaxcnn.run import workdir
from jaxcnn.run.environment import environment
from jaxcnn.run.sessions import FORMER_NAME, Session, describe_changes, read_sessions, record_session
from jaxcnn.run.workdir import Classes, Workdir

CLASSES = Classes(("cat", "dog"), (), "pets", "MIT")


def with_rate(rate):
    return dataclasses.replace(digits(), optim=OptimConfig(learning_rate=rate))


def record_sessions(workdir, *pairs):
    """Starts sessions, each at a step and with a learning rate, and returns start, end and rate of what is recorded."""
    for step, rate in pairs:
        record_session(workdir, with_rate(rate), CLASSES, step=step)
    return [(session.start, session.end, session.config.optim.learning_rate) for session in read_sessions(workdir)]


def test_a_run_that_was_never_resumed_has_one_session(tmp_path):
    workdir = Workdir(tmp_path)
    assert record_sessions(workdir, (0, 0.1)) == [(0, None, 0.1)]
    assert read_sessions(workdir)[0].environment == workdir.read_environment()
    assert not workdir.earlier_sessions.exists()


def test_a_run_without_a_record_has_one_session(tmp_path):
    Workdir(tmp_path).record(digits(), CLASSES)
    (tmp_path / "environment.json").unlink()
    assert read_sessions(Workdir(tmp_path)) == (Session(0, None, digits(), {}),)


def test_a_resumed_run_with_the_same_settings_stays_one_session(tmp_path, monkeypatch):
    assert record_sessions(Workdir(tmp_path), (0, 0.1), (5, 0.1), (7, 0.1), (9, 0.2)) == [(0, 9, 0.1), (9, None, 0.2)]
    monkeypatch.setattr("sys.argv", ["another", "command"])
    assert record_sessions(Workdir(tmp_path), (11, 0.2)) == [(0, 9, 0.1), (9, None, 0.2)]


def test_lost_steps_belong_to_no_session(tmp_path):
    workdir = Workdir(tmp_path)
    assert record_sessions(workdir, (0, 0.1), (5, 0.2), (8, 0.3), (3, 0.4)) == [(0, 3, 0.1), (3, None, 0.4)]
    assert record_sessions(workdir, (3, 0.5)) == [(0, 3, 0.1), (3, None, 0.5)]
    assert record_sessions(workdir, (0, 0.6)) == [(0, None, 0.6)]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from((0.1, 0.2, 0.3))), min_size=1, max_size=6))
def test_every_step_has_the_settings_it_was_taken_with(tmp_path_factory, sessions):
    first, *later = sessions
    taken = {}
    for start, rate in [(0, first[1]), *later]:
        taken = {step: used for step, used in taken.items() if step < start} | dict.fromkeys(range(start, 10), rate)
    spans = record_sessions(Workdir(tmp_path_factory.mktemp("run")), (0, first[1]), *later)
    assert {step: rate for start, end, rate in spans for step in range(start, end or 10)} == taken
    assert all(before[2] != after[2] for before, after in itertools.pairwise(spans))


def test_another_machine_is_another_session(tmp_path, monkeypatch):
    folder, here = Workdir(tmp_path), environment()
    for step, cores in ((0, "2"), (4, "8")):
        monkeypatch.setattr(workdir, "environment", lambda cores=cores: here | {"cores": cores})
        record_session(folder, digits(), CLASSES, step=step)
    assert [(session.start, session.end, session.environment["cores"]) for session in read_sessions(folder)] == [
        (0, 4, "2"),
        (4, None, "8"),
    ]


def test_changes_are_described_with_their_steps_and_what_stayed_once():
    rates = ((0, 1200, 0.1), (1200, 1300, 0.2), (1300, 2400, 0.2), (2400, None, 0.1))
    sessions = [Session(start, end, with_rate(rate), {}) for start, end, rate in rates]
    assert describe_changes(sessions, lambda session: session.config.model.name) == "resnet"
    assert describe_changes(sessions, lambda session: f"rate {session.config.optim.learning_rate}") == (
        "until step 1,200 rate 0.1; until step 2,400 rate 0.2; then rate 0.1"
    )


def test_the_record_of_an_earlier_version_is_read_and_renamed_by_the_next_session(tmp_path):
    workdir, former = Workdir(tmp_path), tmp_path / FORMER_NAME
    record_sessions(workdir, (0, 0.1), (5, 0.2))
    workdir.earlier_sessions.rename(former)
    assert record_sessions(workdir) == [(0, 5, 0.1), (5, None, 0.2)]
    assert former.exists()
    assert record_sessions(workdir, (8, 0.3)) == [(0, 5, 0.1), (5, 8, 0.2), (8, None, 0.3)]
    assert (former.exists(), workdir.earlier_sessions.exists()) == (False, True)


def test_the_record_of_an_earlier_version_goes_with_the_steps_it_is_about(tmp_path):
    workdir, former = Workdir(tmp_path), tmp_path / FORMER_NAME
    record_sessions(workdir, (0, 0.1), (5, 0.2))
    workdir.earlier_sessions.rename(former)
    assert record_sessions(workdir, (0, 0.3)) == [(0, None, 0.3)]
    assert not former.exists()


def test_a_damaged_record_of_an_earlier_version_is_reported_by_its_name(tmp_path):
    record_sessions(Workdir(tmp_path), (0, 0.1))
    (tmp_path / "earlier_sittings.json").write_text("[7]")
    with pytest.raises(UserError, match=r"earlier_sittings\.json is damaged \(.*\); train in a new workdir"):
        read_sessions(Workdir(tmp_path))


@pytest.mark.parametrize(
    "damage",
    ["", "[", "7", "[7]", "[{}]", '[{"end": 3, "config": 5, "environment": {}}]', "null"],
)
def test_a_damaged_record_is_reported(tmp_path, damage):
    workdir = Workdir(tmp_path)
    record_sessions(workdir, (0, 0.1), (5, 0.2))
    workdir.earlier_sessions.write_text(damage)
    with pytest.raises(UserError, match=r"earlier_sessions\.json is damaged \(.*\); train in a new workdir"):
        read_sessions(workdir)


def test_an_unreadable_record_is_reported(tmp_path):
    workdir = Workdir(tmp_path)
    record_sessions(workdir, (0, 0.1))
    workdir.earlier_sessions.mkdir()
    with pytest.raises(UserError, match=r"earlier_sessions\.json is damaged \(.*Is a directory.*\)"):
        read_sessions(workdir)


@pytest.mark.parametrize(
    ("name", "value"), [("end", "5"), ("end", 5.0), ("end", True), ("end", None), ("environment", None)]
)
def test_a_value_of_the_wrong_kind_is_reported(tmp_path, name, value):
    workdir = Workdir(tmp_path)
    record_sessions(workdir, (0, 0.1), (5, 0.2))
    records = json.loads(workdir.earlier_sessions.read_text())
    workdir.earlier_sessions.write_text(json.dumps([records[0] | {name: value}]))
    with pytest.raises(UserError, match="damaged"):
        read_sessions(workdir)
