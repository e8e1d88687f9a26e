"""Sums, extrema and positions along axes."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, identity, renumber
from export.rules.elementwise import scale
from export.rules.registry import require, rule


@rule("reduce_sum")
def reduce_sum(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """ReduceSum, or over the pixels of a channels-first tensor a global average times their number."""
    require(value.dtype in (np.float32, np.int32), builder, eqn, f"{value.dtype} operands")
    axes = eqn.params["axes"]
    sizes = [value.shape[axis] for axis in axes]
    pixels = len(value.layout) > 2 and sorted(value.layout[2:]) == sorted(axes)
    if pixels and value.dtype == np.float32 and value.layout[:2] == (0, len(value.shape) - 1):
        return _sum_pixels(builder, eqn, value, int(np.prod(sizes)))
    positions = np.array(sorted(value.layout.index(axis) for axis in axes), np.int64)
    inputs = [value.name, builder.constant(positions, "axes")]
    return builder.emit("ReduceSum", inputs, eqn.outvars[0].aval, _remaining(value, axes), keepdims=0)


def _sum_pixels(builder: Builder, eqn: Any, value: Tensor, count: int) -> Tensor:
    batch, channels = value.stored_shape[:2]
    kept = Tensor("", (batch, channels, *[1] * (len(value.shape) - 2)), value.dtype, value.layout)
    mean = builder.emit("GlobalAveragePool", [value.name], kept, identity(len(value.shape)))
    flat = builder.emit("Flatten", [mean.name], eqn.outvars[0].aval, axis=1)
    return scale(builder, flat, count)


@rule("reduce_max", "reduce_min", "reduce_prod")
def reduce(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """The operator of the same name."""
    op = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd"}[eqn.primitive.name]
    require(value.dtype in (np.float32, np.int32), builder, eqn, f"{value.dtype} operands")
    axes = eqn.params["axes"]
    positions = sorted(value.layout.index(axis) for axis in axes)
    return builder.emit(op, [value.name], eqn.outvars[0].aval, _remaining(value, axes), axes=positions, keepdims=0)


@rule("argmax", "argmin")
def arg_extremum(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """The first position of the extremum."""
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[eqn.primitive.name]
    (axis,) = eqn.params["axes"]
    like = Tensor("", eqn.outvars[0].aval.shape, np.dtype(np.int64), ())
    layout = _remaining(value, (axis,))
    found = builder.emit(op, [value.name], like, layout, axis=value.layout.index(axis), keepdims=0)
    return builder.cast(found, eqn.outvars[0].aval.dtype)


def _remaining(value: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    return renumber(value.layout, {old: new for new, old in enumerate(kept)})
