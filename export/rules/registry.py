"""The registry of rules, and the errors of what they do not support."""

from collections.abc import Callable, Sequence
from typing import Any

from export.builder import Builder, Value
from export.errors import UnsupportedError

Rule = Callable[..., Value | Sequence[Value]]
"""`rule(builder, eqn, *operands)`: adds the nodes of one equation of the jaxpr and returns its value, or its values.

At least one operand is a Tensor, or the result has a symbolic size: everything else is evaluated during the export.
"""

RULES: dict[str, Rule] = {}
"""Rules by the name of the primitive."""


def rule[F: Rule](*primitives: str) -> Callable[[F], F]:
    """Registers a function as the translation of one or more primitives."""

    def register(function: F) -> F:
        for primitive in primitives:
            RULES[primitive] = function
        return function

    return register


def require(valid: bool, builder: Builder, eqn: Any, what: str) -> None:
    """Checks that a rule supports a variant of its primitive.

    Args:
      valid: whether it does.
      builder: the builder, which knows the module.
      eqn: the equation.
      what: the variant, as in "cannot export the primitive 'scan' with WHAT".

    Raises:
      UnsupportedError: the variant has no translation.
    """
    if not valid:
        raise refusal(builder, eqn, what)


def refusal(builder: Builder, eqn: Any, what: str) -> UnsupportedError:
    """Returns the error that names a variant of a primitive, its module, and what to change."""
    return UnsupportedError(
        f"cannot export the primitive {eqn.primitive.name!r} with {what} at {builder.where()}; "
        "write that part of the module with other operations, or extend the rule in export/rules"
    )
