"""What a run was trained with, when it goes on with other settings or on another machine."""

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
from jaxcnn.run.sessions import Session, read_sessions, record_session, tell
from jaxcnn.run.workdir import Classes, Workdir

CLASSES = Classes(("cat", "dog"), (), "pets", "MIT")


def with_rate(rate):
    return dataclasses.replace(digits(), optim=OptimConfig(learning_rate=rate))


def sit(run, *pairs):
    """Sits down to a run, each time at a step and with a learning rate, and returns all spans and rates."""
    for step, rate in pairs:
        record_session(run, with_rate(rate), CLASSES, step=step)
    return [(each.start, each.end, each.config.optim.learning_rate) for each in read_sessions(run)]


def test_one_sitting(tmp_path):
    run = Workdir(tmp_path)
    assert sit(run, (0, 0.1)) == [(0, None, 0.1)]
    assert read_sessions(run)[0].environment == run.read_environment()
    assert not run.earlier_sessions.exists()


def test_an_older_run_has_one(tmp_path):
    Workdir(tmp_path).record(digits(), CLASSES)
    (tmp_path / "environment.json").unlink()
    assert read_sessions(Workdir(tmp_path)) == (Session(0, None, digits(), {}),)


def test_the_same_again_is_no_other(tmp_path, monkeypatch):
    assert sit(Workdir(tmp_path), (0, 0.1), (5, 0.1), (7, 0.1), (9, 0.2)) == [(0, 9, 0.1), (9, None, 0.2)]
    monkeypatch.setattr("sys.argv", ["another", "command"])
    assert sit(Workdir(tmp_path), (11, 0.2)) == [(0, 9, 0.1), (9, None, 0.2)]


def test_what_was_lost_was_trained_with_nothing(tmp_path):
    run = Workdir(tmp_path)
    assert sit(run, (0, 0.1), (5, 0.2), (8, 0.3), (3, 0.4)) == [(0, 3, 0.1), (3, None, 0.4)]
    assert sit(run, (3, 0.5)) == [(0, 3, 0.1), (3, None, 0.5)]
    assert sit(run, (0, 0.6)) == [(0, None, 0.6)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from((0.1, 0.2, 0.3))), min_size=1, max_size=6))
def test_every_step_has_the_settings_it_was_taken_with(tmp_path_factory, sessions):
    first, *later = sessions
    taken = {}
    for start, rate in [(0, first[1]), *later]:
        taken = {step: used for step, used in taken.items() if step < start} | dict.fromkeys(range(start, 10), rate)
    spans = sit(Workdir(tmp_path_factory.mktemp("run")), (0, first[1]), *later)
    assert {step: rate for start, end, rate in spans for step in range(start, end or 10)} == taken
    assert all(before[2] != after[2] for before, after in itertools.pairwise(spans))


def test_another_machine_is_another_sitting(tmp_path, monkeypatch):
    run, here = Workdir(tmp_path), workdir.environment()
    for step, cores in ((0, "2"), (4, "8")):
        monkeypatch.setattr(workdir, "environment", lambda cores=cores: here | {"cores": cores})
        record_session(run, digits(), CLASSES, step=step)
    assert [(each.start, each.end, each.environment["cores"]) for each in read_sessions(run)] == [
        (0, 4, "2"),
        (4, None, "8"),
    ]


def test_it_is_told_once_what_stayed_and_in_turn_what_changed():
    rates = ((0, 1200, 0.1), (1200, 1300, 0.2), (1300, 2400, 0.2), (2400, None, 0.1))
    sessions = [Session(start, end, with_rate(rate), {}) for start, end, rate in rates]
    assert tell(sessions, lambda each: each.config.model.name) == "resnet"
    assert tell(sessions, lambda each: f"rate {each.config.optim.learning_rate}") == (
        "until step 1,200 rate 0.1; until step 2,400 rate 0.2; then rate 0.1"
    )


@pytest.mark.parametrize(
    "damage",
    ["", "[", "7", "[7]", "[{}]", '[{"end": 3, "config": 5, "environment": {}}]', "null"],
)
def test_a_damaged_record_is_told(tmp_path, damage):
    run = Workdir(tmp_path)
    sit(run, (0, 0.1), (5, 0.2))
    run.earlier_sessions.write_text(damage)
    with pytest.raises(UserError, match=r"earlier_sessions\.json is damaged \(.*\); train in a new workdir"):
        read_sessions(run)


def test_a_record_that_cannot_be_read_is_told(tmp_path):
    run = Workdir(tmp_path)
    sit(run, (0, 0.1))
    run.earlier_sessions.mkdir()
    with pytest.raises(UserError, match=r"earlier_sessions\.json is damaged \(.*Is a directory.*\)"):
        read_sessions(run)


@pytest.mark.parametrize(
    ("name", "value"), [("end", "5"), ("end", 5.0), ("end", True), ("end", None), ("environment", None)]
)
def test_a_value_of_the_wrong_kind_is_told(tmp_path, name, value):
    run = Workdir(tmp_path)
    sit(run, (0, 0.1), (5, 0.2))
    records = json.loads(run.earlier_sessions.read_text())
    run.earlier_sessions.write_text(json.dumps([records[0] | {name: value}]))
    with pytest.raises(UserError, match="damaged"):
        read_sessions(run)
