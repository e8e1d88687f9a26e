"""Typed values from JSON: what a dataclass writes is read, and anything else is named by its path."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.errors import UserError
from jaxcnn.typed_json import decode


@dataclass(frozen=True)
class Leg:
    length: float
    joints: int = 1


@dataclass(frozen=True)
class Robot:
    name: str
    legs: tuple[Leg, ...]
    size: tuple[int, float]
    colour: Literal["red", "green"] = "red"
    is_on: bool = False
    owner: str | None = None
    speeds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Any = None


ROBOT = Robot("Rob", (Leg(1.5, 2), Leg(2.0)), (3, 0.5), "green", True, "Ann", {"walk": 1.0}, [{"free": None}])


def to_json(robot):
    return json.loads(json.dumps(dataclasses.asdict(robot)))


def test_what_is_written_is_read():
    assert decode(Robot, to_json(ROBOT), "robot") == ROBOT


def test_missing_fields_have_their_defaults():
    assert decode(Robot, {"name": "Rob", "legs": [], "size": [1, 2]}, "robot") == Robot("Rob", (), (1, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "robot.name is 3; it must be a text"),
        ({"legs": {}}, "robot.legs is {}; it must be a list"),
        ({"legs": [{"length": 1}, {"length": "x"}]}, "robot.legs[1].length is 'x'; it must be a number"),
        ({"legs": [{"joints": 1}]}, "robot.legs[0].length is missing"),
        ({"legs": [{"length": 1, "toes": 5}]}, "there is no robot.legs[0].toes; robot.legs[0] has: length, joints"),
        ({"size": [1]}, "robot.size is [1]; it must be 2 items"),
        ({"size": [1.0, 2]}, "robot.size[0] is 1.0; it must be a whole number"),
        ({"size": [True, 2]}, "robot.size[0] is True; it must be a whole number"),
        ({"size": [1, True]}, "robot.size[1] is True; it must be a number"),
        ({"size": [1, float("inf")]}, "robot.size[1] is inf; it must be a number"),
        ({"size": [1, float("nan")]}, "robot.size[1] is nan; it must be a number"),
        ({"speeds": {"run": 10**309}}, "robot.speeds.run is 1" + "0" * 97 + "..." + "0" * 99 + "; it must be a number"),
        ({"colour": "blue"}, "robot.colour is 'blue'; it must be one of 'red', 'green'"),
        ({"is_on": 1}, "robot.is_on is 1; it must be true or false"),
        ({"owner": 3}, "robot.owner is 3; it must be a text"),
        ({"speeds": []}, "robot.speeds is []; it must be an object"),
        ({"speeds": {"run": None}}, "robot.speeds.run is None; it must be a number"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(change, message):
    with pytest.raises(UserError) as caught:
        decode(Robot, to_json(ROBOT) | change, "robot")
    assert str(caught.value) == message


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**6)), {str(i): i for i in range(10**4)}, 10**4000])
def test_a_large_value_is_shortened(value):
    with pytest.raises(UserError, match=r"^robot\.is_on is .*; it must be true or false$") as caught:
        decode(Robot, to_json(ROBOT) | {"is_on": value}, "robot")
    assert len(str(caught.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Robot)]), JSON)
def test_any_value_is_read_or_refused(name, value):
    with suppress(UserError):  # Any other error fails the test.
        decode(Robot, to_json(ROBOT) | {name: value}, "robot")
