"""Cumulative sums, products, extrema and log-sum-exp along an axis."""

from collections.abc import Callable
from typing import Any

import numpy as np

from export.builder import Builder, Tensor
from export.expression import Expression, from_ordered, number_dtype, ordered
from export.rules.registry import require, rule
from export.rules.shape import slice_axis


@rule("cumsum")
def cumsum(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds CumSum, in a type that runtimes compute in."""
    wide = builder.cast(value, number_dtype(value.dtype))
    axis = builder.constant(np.array(value.layout.index(eqn.params["axis"]), np.int64), "axis")
    total = builder.emit("CumSum", [wide.name, axis], wide, wide.layout, reverse=int(eqn.params["reverse"]))
    return builder.cast(total, value.dtype)


_COMBINE: dict[str, Callable[[Expression, Expression], Expression]] = {
    "cumprod": lambda a, b: a * b,
    "cummax": lambda a, b: a.apply("Max", b),
    "cummin": lambda a, b: a.apply("Min", b),
}


@rule("cumprod", "cummax", "cummin")
def cumulative(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Combines each element with the one 1, 2, 4, ... positions before it: log2(n) steps (Hillis and Steele 1986)."""
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]
    size = value.shape[axis]
    require(isinstance(size, int), builder, eqn, "a symbolic size")
    combine = _COMBINE[eqn.primitive.name]
    x, multiplies = Expression(builder, value), eqn.primitive.name == "cumprod"
    result, distance = (x.widen() if multiplies else ordered(x)).tensor, 1
    while distance < size:
        combined = combine(
            Expression(builder, slice_axis(builder, result, axis, distance, size)),
            Expression(builder, slice_axis(builder, result, axis, 0, size - distance)),
        )
        # The first `distance` elements (the last, in reverse) have no partner and stay.
        kept = (size - distance, size) if reverse else (0, distance)
        parts = [slice_axis(builder, result, axis, *kept), combined.tensor]
        layout = result.layout
        inputs = [builder.in_layout(part, layout) for part in (reversed(parts) if reverse else parts)]
        result = builder.emit("Concat", inputs, result, layout, axis=layout.index(axis))
        distance *= 2
    total = Expression(builder, result)
    return (total.cast(value.dtype) if multiplies else from_ordered(total, value.dtype)).tensor


@rule("cumlogsumexp")
def cumlogsumexp(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes each position's log-sum-exp over all elements, with those after it masked: n^2 terms."""
    axis, size, rank = eqn.params["axis"], value.shape[eqn.params["axis"]], len(value.shape)
    require(isinstance(size, int), builder, eqn, "a symbolic size")

    # Terms [..., position, other, ...]; masked elements are minus infinity, whose exponential is zero.
    mask = np.tri(size, dtype=bool)
    mask = mask.T if eqn.params["reverse"] else mask
    sizes = [1] * (rank + 1)
    sizes[axis], sizes[axis + 1] = size, size
    others = Expression(builder, value).reshape((*value.shape[:axis], 1, *value.shape[axis:]))
    terms = Expression(builder, mask.reshape(sizes)).where(others, -np.inf)

    # Subtract the largest term, bounded, as infinity minus infinity is NaN.
    largest = float(np.finfo(np.float32).max)
    highest = terms.reduce("ReduceMax", axis + 1).apply("Max", -largest).apply("Min", largest)
    spread = highest.reshape((*value.shape[: axis + 1], 1, *value.shape[axis + 1 :]))
    return ((terms - spread).apply("Exp").reduce("ReduceSum", axis + 1).apply("Log") + highest).tensor
