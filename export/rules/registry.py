"""Where the rules register, and what they share."""

from collections.abc import Callable, Sequence
from typing import Any

from export.builder import Builder, Value
from export.errors import UnsupportedError

Rule = Callable[..., Value | Sequence[Value]]
"""`rule(builder, eqn, *operands)`: adds the nodes of one equation of the jaxpr and returns its value, or its values.

At least one operand is a Tensor, or the result has a symbolic size: everything else is evaluated at export.
"""

RULES: dict[str, Rule] = {}


def rule[F: Rule](*primitives: str) -> Callable[[F], F]:
    """Registers the translation of one or more primitives."""

    def register(function: F) -> F:
        for primitive in primitives:
            RULES[primitive] = function
        return function

    return register


def require(valid: bool, builder: Builder, eqn: Any, what: str) -> None:
    """Refuses a variant of a primitive that has no translation.

    Raises:
      UnsupportedError: unless valid.
    """
    if not valid:
        raise refusal(builder, eqn, what)


def refusal(builder: Builder, eqn: Any, what: str) -> UnsupportedError:
    """The error that names a variant of a primitive, its place and a way out."""
    return UnsupportedError(
        f"cannot export the primitive {eqn.primitive.name!r} with {what} at {builder.where()}; "
        "write that part of the module with other operations, or extend the rule in export/rules"
    )
