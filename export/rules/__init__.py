"""The translations of JAX's primitives to ONNX, one small function each, registered by the primitive's name."""

# Importing a module registers its rules.
from export.rules import (
    bits,
    control,
    cumulative,
    elementwise,
    floats,
    index,
    matmul,
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
    "bits",
    "control",
    "cumulative",
    "elementwise",
    "floats",
    "index",
    "matmul",
    "reduction",
    "shape",
    "sort",
    "special",
    "window",
]
