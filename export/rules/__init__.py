"""The translations of jax's primitives, one small function each, by the primitive's name."""

from export.rules import elementwise, linear, reduction, shape, window
from export.rules.registry import RULES, Rule

__all__ = ["RULES", "Rule", "elementwise", "linear", "reduction", "shape", "window"]
