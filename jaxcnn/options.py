"""Command-line options from a dataclass: one for each field, nested ones with dots, such as `--data.source PATH`.

The type of a field decides how its option is read, its value is the default, and the docstring below it is the help.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import os
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from jaxcnn.errors import UserError
from jaxcnn.typed_json import EXPECTATIONS

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
"""What `--help` calls a value."""
_EXPECTATIONS = EXPECTATIONS | {Path: "a path"}
"""What errors call a value."""


@dataclasses.dataclass(frozen=True)
class Alias:
    """Marks a field, in `Annotated`, whose option has a second name such as `-o`."""

    name: str


@dataclasses.dataclass(frozen=True)
class Named:
    """Marks a field, in `Annotated`, whose option has another name than the field."""

    name: str


class Unprefixed:
    """Marks a nested dataclass, in `Annotated`, whose options do not begin with the name of its field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    Attributes:
      name: with dots, without dashes, such as `data.source`.
      path: names of the fields that lead to its value.
      kind: type of the value.
      default: the value without the option.
      help: what the option does.
      about: what the dataclass is that the field belongs to.
      aliases: other names, with their dashes.
    """

    name: str
    path: tuple[str, ...]
    kind: Any
    default: object
    help: str
    about: str
    aliases: tuple[str, ...]

    @property
    def group(self) -> str:
        """The name up to its last dot; empty without dots."""
        return self.name.rpartition(".")[0]

    @property
    def flags(self) -> tuple[str, ...]:
        """Its names on the command line; of two values, the one that turns it off is the last."""
        off = f"--{self.group}{'.' if self.group else ''}no_{self.path[-1]}"
        return (*self.aliases, f"--{self.name}", *([off] if self.kind is bool else []))


def parse[T](
    default: T, arguments: Sequence[str], *, prog: str, description: str = "", unknown: Mapping[str, str] | None = None
) -> T:
    """Returns the dataclass `default` with the fields changed that options name; `--help` prints all and exits.

    Args:
      default: the value without options.
      arguments: the command line.
      prog: how the command begins.
      description: what it does.
      unknown: what `--help` prints in place of the defaults of some options, by how their names begin.

    Raises:
      UserError: an option does not exist, or its value is not of its type.
    """
    value, words = parse_with_words(default, arguments, prog=prog, description=description, unknown=unknown)
    if words:
        raise UserError(f"{words[0]!r} belongs to no option; see {prog} --help")
    return value


def parse_with_words[T](
    default: T, arguments: Sequence[str], *, prog: str, description: str = "", unknown: Mapping[str, str] | None = None
) -> tuple[T, tuple[str, ...]]:
    """Does what `parse` does, and also returns the words that belong to no option, such as names of files.

    A lone `-` is such a word, and so is everything after `--`.

    Raises:
      UserError: as `parse`.
    """
    # Split the command line: argparse collects the words of each option.
    before, after = _split_at(arguments, "--")
    options = {option.name: option for option in find_options(default)}
    parser = _make_parser(options.values(), prog=prog, description=description, unknown=unknown or {})
    given, others = parser.parse_known_args(with_underscores(before))
    for other in others:
        if other.startswith("-") and other != "-":
            raise UserError(_explain_unknown(other, options.values()))
    # Convert the words of all options before anything is replaced: checks see all new values at once.
    values = {options[name].path: _read(options[name], words) for name, words in vars(given).items()}
    return typing.cast(T, _replace(default, values)), (*others, *after)


def _split_at(arguments: Sequence[str], separator: str) -> tuple[Sequence[str], Sequence[str]]:
    """Splits arguments at the first that is the separator, which is dropped."""
    place = list(arguments).index(separator) if separator in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def peek[T](arguments: Sequence[str], option: str, default: T) -> str | T:
    """Returns the value of an option that the defaults of others depend on, before all are parsed.

    Without a value it counts as not given: `parse` reports the error.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{option}", dest="value", nargs="?", default=default, const=default)
    value: str | T = parser.parse_known_args(with_underscores(arguments))[0].value
    return value


def find_options(value: Any, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Yields the options of a dataclass in the order of its fields."""
    hints = typing.get_type_hints(type(value), include_extras=True)
    helps = _read_docstrings(type(value))
    for field in dataclasses.fields(value):
        # `Annotated` adds marks to the type.
        kind, marks, inner = hints[field.name], [], getattr(value, field.name)
        if typing.get_origin(kind) is Annotated:
            kind, *marks = typing.get_args(kind)
        if dataclasses.is_dataclass(inner):
            inner_prefix = prefix if Unprefixed in marks else f"{prefix}{field.name}."
            yield from find_options(inner, inner_prefix, (*path, field.name))
        else:
            names = [mark.name for mark in marks if isinstance(mark, Named)]
            yield Option(
                name=prefix + (names[0] if names else field.name),
                path=(*path, field.name),
                kind=kind,
                default=inner,
                help=helps.get(field.name, ""),
                about=inspect.getdoc(type(value)) or "",
                aliases=tuple(mark.name for mark in marks if isinstance(mark, Alias)),
            )


def _read_docstrings(kind: type) -> dict[str, str]:
    """Returns the docstring below each field of a class, which Python keeps only in the source."""
    # A docstring is the expression after its field.
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _replace(value: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """Returns a dataclass with new values by their paths; the checks of a dataclass run once, on all of its values."""
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(path[0] for path in changes):
        inner = {path[1:]: change for path, change in changes.items() if path[0] == name}
        fields[name] = inner[()] if () in inner else _replace(getattr(value, name), inner)
    return dataclasses.replace(value, **fields)


class Parser(argparse.ArgumentParser):
    """Splits a command line into options and their words; raises every error."""

    def error(self, message: str) -> NoReturn:
        """Raises a UserError in place of printing the usage."""
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


class _Switch(argparse.Action):
    """An option without a value; its last name turns it off."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string != self.option_strings[-1])


def _make_parser(
    options: Iterable[Option], *, prog: str, description: str, unknown: Mapping[str, str]
) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        usage="%(prog)s [OPTIONS]",
        description=_wrap(description),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=8),
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("-h", "--help", action="help", help="Print this help and exit.")
    sections: dict[str, Any] = {"": parser}
    for option in options:
        if option.group not in sections:
            sections[option.group] = parser.add_argument_group(f"{option.group} options", option.about)
        # Tuples take any number of words here; `_convert` checks how many.
        kind = _required(option.kind)
        how: dict[str, Any] = {"action": _Switch}
        if kind is not bool:
            how = {"metavar": _metavar(kind), "nargs": "*" if typing.get_origin(kind) is tuple else None}
        # argparse formats help with `%`.
        shown = next((text for start, text in unknown.items() if option.name.startswith(start)), _show(option.default))
        text = f"{option.help} (default: {shown})".replace("%", "%%")
        sections[option.group].add_argument(*option.flags, dest=option.name, help=text, **how)
    return parser


def _wrap(text: str) -> str:
    """Returns paragraphs wrapped to the terminal, except those that are indented."""
    width = shutil.get_terminal_size().columns - 2
    return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in text.split("\n\n"))


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Spells the names of options with `_`, so that `--init-from` is `--init_from`."""
    split = [argument.partition("=") if argument.startswith("--") else ("", "", argument) for argument in arguments]
    return [f"{name[:2]}{name[2:].replace('-', '_')}{equals}{value}" for name, equals, value in split]


def _read(option: Option, words: Any) -> Any:
    """Returns the value of an option.

    Raises:
      UserError: the words are not of its type.
    """
    # A switch has its value already.
    if isinstance(words, bool):
        return words
    words = [words] if isinstance(words, str) else words
    try:
        return _convert(option.kind, words)
    except (ValueError, KeyError):
        expected = _expectation(option.kind)
        raise UserError(f"{option.name} is {' '.join(words)!r}; it must be {expected}") from None


def _convert(kind: Any, words: Sequence[str]) -> Any:
    """Returns the value of a type from its words; raises ValueError or KeyError if they are not of that type."""
    if (required := _required(kind)) is not kind:
        return None if list(words) == ["None"] else _convert(required, words)
    if typing.get_origin(kind) is tuple:
        kinds = _item_kinds(kind, len(words))
        remaining = iter(words)
        return tuple(_convert(item, list(itertools.islice(remaining, _width(item)))) for item in kinds)
    (word,) = words
    if typing.get_origin(kind) is Literal:
        return {str(choice): choice for choice in typing.get_args(kind)}[word]
    # Shells leave the `~` of `--output=~/results.csv` as it is: a folder of that name would be made.
    return Path(os.path.expanduser(word)) if kind is Path else kind(word)


def _item_kinds(kind: Any, words: int) -> tuple[Any, ...]:
    """Returns the types of the items of a tuple that has so many words in all."""
    kinds = typing.get_args(kind)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * (words // _width(kinds[0]))
    if sum(map(_width, kinds)) != words:
        raise ValueError
    return kinds


def _width(kind: Any) -> int:
    """Returns how many words an item of a tuple has."""
    return len(typing.get_args(kind)) if typing.get_origin(kind) is tuple else 1


def _required(kind: Any) -> Any:
    """Returns the type without `None`."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(inner for inner in typing.get_args(kind) if inner is not types.NoneType)
    return kind


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"{{{','.join(map(str, typing.get_args(kind)))}}}"
    if typing.get_origin(kind) is tuple:
        return " ".join(_metavar(item) for item in dict.fromkeys(typing.get_args(kind)) if item is not Ellipsis)
    return _METAVARS[kind]


def _expectation(kind: Any) -> str:
    if (required := _required(kind)) is not kind:
        return f"{_expectation(required)}, or None"
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            return f"{_expectation(kinds[0])}, any number of times"
        return " and ".join(map(_expectation, kinds))
    return _EXPECTATIONS[kind]


def _show(default: object) -> str:
    """Returns a default as it would be given on the command line; of nested tuples all items in a row."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return " ".join(map(_show, default)) or "empty"
    return str(default)


def _explain_unknown(argument: str, options: Iterable[Option]) -> str:
    """Returns what is wrong with an argument that is no option, and which option is meant or which there are."""
    name = argument.lstrip("-").partition("=")[0]
    by_group: dict[str, list[str]] = {}
    for option in options:
        by_group.setdefault(option.group, []).append(f"--{option.name}")
    names = list(itertools.chain.from_iterable(by_group.values()))
    # The option of another group, such as --optim.learning_rate for --learning_rate.
    last = name.rpartition(".")[2]
    if meant := [other for other in names if other.lstrip("-").rpartition(".")[2] == last]:
        return f"there is no option {argument}; did you mean {' or '.join(meant)}?"
    group = name if name in by_group else name.rpartition(".")[0]
    found = by_group.get(group, names)
    groups = [f"--{other}.*" for other in by_group if other] if found is by_group.get("") else []
    return f"there is no option {argument}; there are: {', '.join([*found, *groups])}"
