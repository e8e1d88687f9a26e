"""The translations of jax's primitives, one small function each, by the primitive's name."""

from export.rules import (
    control,
    cumulative,
    elementwise,
    floats,
    index,
    integer,
    linear,
    reduction,
    shape,
    sort,
    special,
    window,
)
from export.rules.registry import RULES, Rule

__all__ = [
    "RULES",
    "Rule",
    "control",
    "cumulative",
    "elementwise",
    "floats",
    "index",
    "integer",
    "linear",
    "reduction",
    "shape",
    "sort",
    "special",
    "window",
]
