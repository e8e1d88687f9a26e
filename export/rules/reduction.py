"""Reductions along axes: sums, products, extrema and their positions."""

import math
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, identity, renumber
from export.expression import Expression, from_ordered, limits, number_dtype, ordered
from export.rules.bits import reduce_bits
from export.rules.elementwise import scale
from export.rules.registry import require, rule
from export.rules.shape import filled, pad_with, slice_axis

_REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_or": "ReduceSum",  # ReduceMax over an empty axis is not false.
    "reduce_and": "ReduceMin",
}

_EXTREMA = ("reduce_max", "reduce_min")


@rule(*_REDUCTIONS)
def reduce(builder: Builder, eqn: Any, value: Tensor) -> Value:
    """Adds the operator of the same name; sums of all pixels of a feature map become a scaled GlobalAveragePool."""
    axes, aval = eqn.params["axes"], eqn.outvars[0].aval
    if not axes:
        return value
    # Old runtimes refuse the extremum of no elements, or make it 0.
    if 0 in (value.shape[axis] for axis in axes):
        return filled(builder, aval, _neutral(eqn.primitive.name, value.dtype))
    if eqn.primitive.name in ("reduce_or", "reduce_and") and value.dtype != np.bool_:
        return reduce_bits(builder, eqn, value)

    if eqn.primitive.name in _EXTREMA and value.dtype == np.uint32:
        found = Expression(builder, reduce(builder, eqn, ordered(Expression(builder, value)).tensor))
        return from_ordered(found, value.dtype).tensor

    # All axes after batch and channels of a channels-first tensor, the pattern that runtimes optimize best.
    pixels = len(value.layout) > 2 and sorted(value.layout[2:]) == sorted(axes)
    static = all(isinstance(value.shape[axis], int) for axis in axes)
    averages = eqn.primitive.name == "reduce_sum" and pixels and static and value.layout[0] == 0
    if averages and value.dtype == np.float32 and value.layout[1] == len(value.shape) - 1:
        return _sum_pixels(builder, eqn, value, math.prod(value.shape[axis] for axis in axes))

    # Sums of 32-bit integers would saturate; a sum in 64 bits that is cast back wraps around, as in JAX.
    op = _REDUCTIONS[eqn.primitive.name]
    if op == "ReduceProd" and value.dtype.kind in "iu":
        return _multiply(builder, eqn, value)
    if op == "ReduceSum" and value.dtype == np.int64:
        return _sum_halves(builder, eqn, value)
    dtype = np.dtype(np.int64) if op == "ReduceSum" and value.dtype.kind in "iu" else number_dtype(value.dtype)
    like = Tensor("", aval.shape, dtype, ())
    name, positions = builder.cast(value, dtype).name, sorted(value.layout.index(axis) for axis in axes)
    # Operator set 17 takes the axes of ReduceSum as an input, and the axes of all other reductions as an attribute.
    if op == "ReduceSum":
        inputs = [name, builder.constant(np.array(positions, np.int64), "axes")]
        reduced = builder.emit(op, inputs, like, _remaining(value, axes), keepdims=0)
    else:
        reduced = builder.emit(op, [name], like, _remaining(value, axes), axes=positions, keepdims=0)
    # A runtime knows the extremum of no elements of the wide type only. A symbolic axis may turn out to be empty.
    may_be_empty = not all(isinstance(value.shape[axis], int) for axis in axes)
    if eqn.primitive.name in _EXTREMA and dtype != value.dtype and may_be_empty:
        bound = int(_neutral(eqn.primitive.name, value.dtype))
        reduced = Expression(builder, reduced).apply(op.removeprefix("Reduce"), bound).tensor
    return builder.cast(reduced, value.dtype)


def _neutral(primitive: str, dtype: np.dtype[Any]) -> Any:
    """Returns what a reduction makes of no elements."""
    if primitive == "reduce_and":
        return np.invert(np.zeros((), dtype))
    lowest, highest = limits(dtype)
    return {"reduce_prod": 1, "reduce_max": lowest, "reduce_min": highest}.get(primitive, 0)


def _multiply(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Multiplies integers, half by half, so that they wrap around: onnxruntime's ReduceProd computes in floats."""
    product = Expression(builder, value).widen()
    for axis in eqn.params["axes"]:
        size = product.shape[axis]
        require(isinstance(size, int), builder, eqn, "integers along a symbolic size")
        # Pad with ones to a power of two.
        half = 1 << max(size - 1, 0).bit_length()
        config = [(0, half - size if padded == axis else 0, 0) for padded in range(len(product.shape))]
        product = Expression(builder, pad_with(builder, product.tensor, np.ones((), product.dtype), config))
        while half > 1:
            half //= 2
            parts = [slice_axis(builder, product.tensor, axis, start, start + half) for start in (0, half)]
            product = Expression(builder, parts[0]) * Expression(builder, parts[1])
    return product.reshape(eqn.outvars[0].aval.shape).cast(value.dtype).tensor


def _sum_halves(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Sums the upper and the lower 32 bits apart: onnxruntime sums int64 in double precision, which holds 53 bits."""
    x = Expression(builder, value)
    lower = x % (1 << 32)
    upper = (x - lower) / (1 << 32)
    for axis in sorted(eqn.params["axes"], reverse=True):
        upper, lower = upper.reduce("ReduceSum", axis), lower.reduce("ReduceSum", axis)
    return (upper * (1 << 32) + lower).tensor


def _sum_pixels(builder: Builder, eqn: Any, value: Tensor, count: int) -> Tensor:
    """Sums the pixels of a channels-first tensor; a division that follows, as in a mean, cancels the factor."""
    batch, channels = value.stored_shape[:2]
    kept = Tensor("", (batch, channels, *[1] * (len(value.shape) - 2)), value.dtype, value.layout)
    mean = builder.emit("GlobalAveragePool", [value.name], kept, identity(len(value.shape)))
    flat = builder.emit("Flatten", [mean.name], eqn.outvars[0].aval, axis=1)
    return scale(builder, flat, count)


@rule("reduce_xor")
def reduce_xor(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Returns whether an odd number of booleans is true, or of integers has each bit."""
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
    """Adds ArgMax or ArgMin, which return the first position of the extremum, as JAX does."""
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[eqn.primitive.name]
    (axis,) = eqn.params["axes"]
    value = ordered(Expression(builder, value)).tensor
    like = Tensor("", eqn.outvars[0].aval.shape, np.dtype(np.int64), ())
    layout = _remaining(value, (axis,))
    found = builder.emit(op, [value.name], like, layout, axis=value.layout.index(axis), keepdims=0)
    return builder.cast(found, eqn.outvars[0].aval.dtype)


def _remaining(value: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the layout of a value after axes were reduced."""
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    return renumber(value.layout, {old: new for new, old in enumerate(kept)})
