"""Sums, extrema and positions along axes."""

import math
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, identity, renumber
from export.expression import Expression, number_dtype
from export.rules.elementwise import scale
from export.rules.integer import reduce_bits
from export.rules.registry import rule

_REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_or": "ReduceSum",  # over nothing ReduceMax is not false
    "reduce_and": "ReduceMin",
}


@rule(*_REDUCTIONS)
def reduce(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """The operator of the same name; a sum of the pixels of a channels-first tensor is a global average times n."""
    axes, aval = eqn.params["axes"], eqn.outvars[0].aval
    if not axes:
        return value
    if eqn.primitive.name in ("reduce_or", "reduce_and") and value.dtype != np.bool_:
        return reduce_bits(builder, eqn, value)
    pixels = len(value.layout) > 2 and sorted(value.layout[2:]) == sorted(axes)
    static = all(isinstance(value.shape[axis], int) for axis in axes)
    averages = eqn.primitive.name == "reduce_sum" and pixels and static and value.layout[0] == 0
    if averages and value.dtype == np.float32 and value.layout[1] == len(value.shape) - 1:
        return _sum_pixels(builder, eqn, value, math.prod(value.shape[axis] for axis in axes))
    dtype = number_dtype(value.dtype)
    op = _REDUCTIONS[eqn.primitive.name]
    like = Tensor("", aval.shape, dtype, ())
    name, positions = builder.cast(value, dtype).name, sorted(value.layout.index(axis) for axis in axes)
    if op == "ReduceSum":
        inputs = [name, builder.constant(np.array(positions, np.int64), "axes")]
        reduced = builder.emit(op, inputs, like, _remaining(value, axes), keepdims=0)
    else:
        reduced = builder.emit(op, [name], like, _remaining(value, axes), axes=positions, keepdims=0)
    return builder.cast(reduced, value.dtype)


def _sum_pixels(builder: Builder, eqn: Any, value: Tensor, count: int) -> Tensor:
    batch, channels = value.stored_shape[:2]
    kept = Tensor("", (batch, channels, *[1] * (len(value.shape) - 2)), value.dtype, value.layout)
    mean = builder.emit("GlobalAveragePool", [value.name], kept, identity(len(value.shape)))
    flat = builder.emit("Flatten", [mean.name], eqn.outvars[0].aval, axis=1)
    return scale(builder, flat, count)


@rule("reduce_xor")
def parity(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Whether an odd number is true, or has the bit."""
    if value.dtype != np.bool_:
        return reduce_bits(builder, eqn, value)
    axes = eqn.params["axes"]
    inputs = [builder.cast(value, np.int32).name]
    inputs.append(builder.constant(np.array(sorted(value.layout.index(axis) for axis in axes), np.int64), "axes"))
    like = Tensor("", eqn.outvars[0].aval.shape, np.dtype(np.int32), ())
    count = builder.emit("ReduceSum", inputs, like, _remaining(value, axes), keepdims=0)
    return (Expression(builder, count) % 2).cast(np.bool_).tensor


@rule("argmax", "argmin")
def arg_extremum(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """The first position of the extremum."""
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[eqn.primitive.name]
    (axis,) = eqn.params["axes"]
    value = builder.cast(value, number_dtype(value.dtype))
    like = Tensor("", eqn.outvars[0].aval.shape, np.dtype(np.int64), ())
    layout = _remaining(value, (axis,))
    found = builder.emit(op, [value.name], like, layout, axis=value.layout.index(axis), keepdims=0)
    return builder.cast(found, eqn.outvars[0].aval.dtype)


def _remaining(value: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    return renumber(value.layout, {old: new for new, old in enumerate(kept)})
