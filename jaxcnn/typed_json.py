"""Builds values of annotated types from parsed JSON, and names by its path what does not fit.

Standard library only, like `jaxcnn.config`.
"""

import dataclasses
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from jaxcnn.errors import UserError

EXPECTATIONS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
"""What errors call a value of a type."""
EARLIER = "earlier"
"""Key in the metadata of a dataclass field: its value in records of versions without the field."""
_SHORTENED = reprlib.Repr(maxlevel=4, maxlist=6, maxdict=6, maxstring=200, maxlong=200)
"""Values in errors, which may come from untrusted files."""


@typing.overload
def decode[T](kind: type[T], value: object, path: str) -> T: ...


@typing.overload
def decode(kind: Any, value: object, path: str) -> Any: ...


def decode(kind: Any, value: object, path: str) -> Any:
    """Returns a value of a type from parsed JSON.

    Args:
      kind: a dataclass, whose missing fields have their defaults, or what is `EARLIER` in their metadata; a tuple,
        which JSON has as a list; a dictionary with text as keys; an optional type, a literal, int, float, str, bool or
        Any.
      value: as `json.loads` returns it.
      path: what errors call the value, such as `config`; its fields are then `config.epochs`, its items `config[0]`.

    Raises:
      UserError: a part of the value is of another type, missing or unknown.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, path)
    if origin is Literal:
        return _checked(value, value in arguments, path, f"one of {', '.join(map(repr, arguments))}")
    # A union is of one type and None.
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else decode(inner, value, path)
    if origin is tuple:
        items = _checked(value, isinstance(value, list), path, "a list")
        kinds = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        _checked(value, len(kinds) == len(items), path, f"{len(kinds)} items")
        pairs = zip(kinds, items, strict=True)
        return tuple(decode(item_kind, item, f"{path}[{i}]") for i, (item_kind, item) in enumerate(pairs))
    if origin in (dict, Mapping):
        entries = _checked(value, isinstance(value, dict), path, "an object")
        return {name: decode(arguments[1], entry, f"{path}.{name}") for name, entry in entries.items()}
    # JSON has one kind of number.
    if kind is float:
        return float(_checked(value, _is_finite(value), path, EXPECTATIONS[float]))
    return _checked(value, type(value) is kind, path, EXPECTATIONS[kind])


def _decode_fields(kind: Any, value: Any, path: str) -> Any:
    # All names are checked before any value: a wrong name says most about what went wrong.
    kinds = typing.get_type_hints(kind)
    _checked(value, isinstance(value, dict), path, "an object")
    for name in value:
        if name not in kinds:
            raise UserError(f"there is no {path}.{name}; {path} has: {', '.join(kinds)}")
    for field in dataclasses.fields(kind):
        if field.name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{field.name} is missing")
    earlier = {field.name: field.metadata[EARLIER] for field in dataclasses.fields(kind) if EARLIER in field.metadata}
    return kind(**(earlier | {name: decode(kinds[name], entry, f"{path}.{name}") for name, entry in value.items()}))


def _is_finite(value: object) -> bool:
    """Returns whether a value is a number that a float can hold; Python's reader also accepts NaN and Infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _checked(value: Any, valid: bool, path: str, expected: str) -> Any:
    if not valid:
        raise UserError(f"{path} is {_SHORTENED.repr(value)}; it must be {expected}")
    return value
