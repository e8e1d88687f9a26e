"""Options from a dataclass: values of every type, help, and one-line errors."""

import dataclasses
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.__main__ import Arguments as ExportArguments
from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.evaluate import Arguments as EvaluateArguments
from jaxcnn.options import Alias, Unprefixed, find_options, parse, peek
from jaxcnn.presets import PRESETS
from jaxcnn.train import Arguments as TrainArguments


@dataclass(frozen=True)
class Paint:
    """What the walls get."""

    colour: Literal["red", "green"] = "red"
    """The colour. At 100% it is bright."""
    coats: int = 2
    """How many."""
    is_dry: bool = False
    """Wait."""

    def __post_init__(self) -> None:
        if self.colour == "green" and self.coats < 2:
            raise UserError("green needs two coats")


@dataclass(frozen=True)
class Room:
    """A room."""

    paint: Paint = field(default_factory=Paint)
    layout: Annotated[Paint, Unprefixed] = field(default_factory=Paint)
    place: Annotated[Path | None, Alias("-p")] = None
    """Where."""
    sizes: tuple[float, float] | None = None
    """Width and length."""
    windows: tuple[tuple[float, int], ...] = ((0.5, 3),)
    """Height and number."""
    names: tuple[str, ...] = ()
    """Of its people."""
    level: float = 0.0
    """Above the street."""


def read(line: str) -> Room:
    return parse(Room(), line.split(), prog="build")


def test_no_option_changes_nothing():
    assert read("") == Room()


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("--paint.coats 3", {"paint": Paint(coats=3)}),
        ("--paint.coats=3 --paint.colour green", {"paint": Paint("green", 3)}),
        ("--coats 3", {"layout": Paint(coats=3)}),
        ("--paint.is_dry", {"paint": Paint(is_dry=True)}),
        ("--paint.is-dry --paint.no-is-dry", {}),
        ("--is_dry --paint.no_is_dry", {"layout": Paint(is_dry=True)}),
        ("--place a/b", {"place": Path("a/b")}),
        ("-p a --level 2 --level -3.5", {"place": Path("a"), "level": -3.5}),
        ("-p None", {}),
        ("--sizes 1 2.5", {"sizes": (1.0, 2.5)}),
        ("--sizes 1 2 --sizes None", {}),
        ("--windows", {"windows": ()}),
        ("--windows 1 2 3 4", {"windows": ((1.0, 2), (3.0, 4))}),
        ("--names=a", {"names": ("a",)}),
        ("--names a None --level 1e3", {"names": ("a", "None"), "level": 1000.0}),
    ],
)
def test_an_option_is_read_by_the_type_of_its_field(line, changes):
    assert read(line) == dataclasses.replace(Room(), **changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--paint.coats 2.5", "paint.coats is '2.5'; it must be a whole number"),
        ("--paint.coats=", "paint.coats is ''; it must be a whole number"),
        ("--paint.coats None", "paint.coats is 'None'; it must be a whole number"),
        ("--paint.colour blue", "paint.colour is 'blue'; it must be one of 'red', 'green'"),
        ("--level up", "level is 'up'; it must be a number"),
        ("--sizes 1", "sizes is '1'; it must be a number and a number, or None"),
        ("--sizes 1 2 3", "sizes is '1 2 3'; it must be a number and a number, or None"),
        ("--sizes", "sizes is ''; it must be a number and a number, or None"),
        ("--windows 1 2 3", "windows is '1 2 3'; it must be a number and a whole number, any number of times"),
        ("--windows 1 2.5", "windows is '1 2.5'; it must be a number and a whole number, any number of times"),
        ("--level", "--level: expected one argument; see build --help"),
        ("--paint.is_dry=no", "--paint.is_dry/--paint.no_is_dry: ignored explicit argument 'no'; see build --help"),
        ("--level 3 4", "'4' belongs to no option; see build --help"),
        (
            "--paint.colors 3",
            "there is no option --paint.colors; there are: --paint.colour, --paint.coats, --paint.is_dry",
        ),
        (
            "--leve 3",
            "there is no option --leve; there are: --colour, --coats, --is_dry, --place, --sizes, --windows, --names, "
            "--level, --paint.*",
        ),
        ("--paint red", "there is no option --paint; there are: --paint.colour, --paint.coats, --paint.is_dry"),
        ("--walls.colours 3", "there is no option --walls.colours; there are: --paint.colour, --paint.coats, "),
        ("--walls.colour 3", "there is no option --walls.colour; did you mean --paint.colour or --colour?"),
        ("--paint.level=3", "there is no option --paint.level=3; did you mean --level?"),
        ("--paint.colour green --paint.coats 1", "green needs two coats"),
    ],
)
def test_a_mistake_is_named_in_one_line(line, message):
    with pytest.raises(UserError) as caught:
        read(line)
    assert str(caught.value).startswith(message)
    assert str(caught.value) == message or message.endswith(", ")


def test_the_home_directory_is_expanded_as_shells_do_only_after_a_space(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert read("--place=~/a.csv").place == Path("/home/me/a.csv")
    assert read("-p a/~").place == Path("a/~")
    assert read("-p ~nosuchuser/a").place == Path("~nosuchuser/a")


def test_values_are_checked_together():
    assert read("--paint.coats 1").paint.coats == 1
    assert parse(Paint("green"), ["--coats", "1", "--colour", "red"], prog="paint") == Paint("red", 1)


def spell(value: object) -> list[str]:
    return [word for item in value for word in spell(item)] if isinstance(value, tuple) else [str(value)]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_written_as_options(name):
    preset, line = PRESETS[name](), []
    for option in find_options(preset):
        words = spell(option.default)
        if isinstance(option.default, bool):
            line.append(option.flags[not option.default])
        else:
            line += [f"--{option.name}=", *words[1:]] if words == [""] else [f"--{option.name}", *words]
    assert parse(Config(), line, prog="train") == preset


VALUES = ("paint.coats", "sizes", "windows", "names", "level")


@given(st.lists(st.text(max_size=5), max_size=4), st.sampled_from(VALUES))
def test_any_words_are_read_or_refused(words, name):
    with suppress(UserError, SystemExit):  # any other error fails the test
        parse(Room(), [f"--{name}", *words], prog="build")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--epochs 3 --init_from a.safetensors --flip", "a.safetensors"),
        ("--init_from=a.safetensors", "a.safetensors"),
        ("--init-from a.safetensors", "a.safetensors"),
        ("--init_from a --init_from b", "b"),
        ("--init_from", "shipped"),
        ("--init_from --epochs 3", "shipped"),
        ("--init_fro a --init_from_ a --epochs 3", "shipped"),
        ("", "shipped"),
    ],
)
def test_an_option_is_known_before_all_are_parsed(line, value):
    assert peek(line.split(), "init_from", "shipped") == value


def test_help_shows_each_option_with_its_kind_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        parse(Room(names=("a", "b")), ["--level", "x", "--help"], prog="build", description="Builds a room.")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for line in (
        "usage: build [OPTIONS]",
        "Builds a room.",
        "paint options:",
        "  What the walls get.",
        "  --paint.colour {red,green}",
        "        The colour. At 100% it is bright. (default: red)",
        "  --paint.is_dry, --paint.no_is_dry",
        "        Wait. (default: off)",
        "  -p PATH, --place PATH",
        "        Where. (default: None)",
        "  --windows [FLOAT INT ...]",
        "        Height and number. (default: 0.5 3)",
        "        Of its people. (default: a b)",
    ):
        assert line in printed.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [TrainArguments(Config(), Path()), EvaluateArguments(), ExportArguments()],
    ids=str,
)
def test_every_option_of_a_command_says_what_it_does(arguments):
    options = list(find_options(arguments))
    assert options
    for option in options:
        assert option.help.endswith("."), option.name
        assert option.help[0].isupper() or option.help[0] == "`", option.name
