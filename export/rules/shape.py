"""Primitives that move, repeat, join and cut, and compute nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, renumber
from export.rules.registry import common_layout, refusal, require, rule


@rule("reshape", "squeeze", "expand_dims")
def reshape(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """All of them by the shape that results."""
    require(eqn.params.get("dimensions") is None or eqn.primitive.name != "reshape", builder, eqn, "dimensions")
    return builder.reshape(value, eqn.outvars[0].aval.shape)


@rule("transpose")
def transpose(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Free: only the numbering of the axes changes."""
    permutation = eqn.params["permutation"]
    layout = renumber(value.layout, {old: new for new, old in enumerate(permutation)})
    return Tensor(value.name, eqn.outvars[0].aval.shape, value.dtype, layout)


@rule("broadcast_in_dim")
def broadcast_in_dim(builder: Builder, eqn: Any, value: Value) -> Tensor:
    """Axes of size 1 put in, then repeated where the result is larger."""
    shape, axes = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
    sizes = dict(zip(axes, value.shape, strict=True))
    value = builder.reshape(builder.as_tensor(value), tuple(sizes.get(axis, 1) for axis in range(len(shape))))
    return builder.expand(value, shape)


@rule("dim_as_value")
def size(builder: Builder, eqn: Any) -> Tensor:
    """A symbolic size as a number, such as in a mean over the batch."""
    vector = Tensor(builder.measure(eqn.params["dim"]), (1,), np.dtype(np.int64), (0,))
    return builder.cast(builder.reshape(vector, ()), eqn.outvars[0].aval.dtype)


@rule("concatenate")
def concatenate(builder: Builder, eqn: Any, *values: Value) -> Tensor:
    """Concat in the layout the operands have."""
    layout = common_layout(*values)
    inputs = [builder.stored(each, layout) for each in values]
    return builder.emit("Concat", inputs, eqn.outvars[0].aval, layout, axis=layout.index(eqn.params["dimension"]))


@rule("pad")
def pad(builder: Builder, eqn: Any, value: Value, filling: Value) -> Tensor:
    """A constant border; neither cropping nor gaps between elements."""
    config = eqn.params["padding_config"]
    require(all(low >= 0 and high >= 0 and gap == 0 for low, high, gap in config), builder, eqn, f"the sizes {config}")
    value = builder.as_tensor(value)
    if eqn.outvars[0].aval.shape == value.shape:
        return value
    sizes = [config[axis][0] for axis in value.layout] + [config[axis][1] for axis in value.layout]
    inputs = [value.name, builder.constant(np.array(sizes, np.int64), "pads"), builder.stored(filling, ())]
    return builder.emit("Pad", inputs, eqn.outvars[0].aval, value.layout)


@rule("slice")
def cut(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Slice along the axes that are cut."""
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    return _cut(builder, eqn, value, starts, limits, eqn.params["strides"] or (1,) * len(starts))


@rule("gather")
def gather(builder: Builder, eqn: Any, value: Tensor, indices: Value) -> Tensor:
    """One block at a known place, which is what indexing by numbers and slices becomes."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if not isinstance(indices, np.ndarray) or indices.ndim != 1:
        raise refusal(builder, eqn, "computed or several places")
    place = dict(zip(numbers.start_index_map, indices.tolist(), strict=True))
    starts = [place.get(axis, 0) for axis in range(len(sizes))]
    static = all(isinstance(value.shape[axis], int) for axis in place)
    require(static, builder, eqn, "a place along a symbolic size")
    inside = all(start >= 0 and start + sizes[axis] <= value.shape[axis] for axis, start in place.items())
    require(inside, builder, eqn, "a place outside the array")
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    block = _cut(builder, eqn, value, starts, limits, (1,) * len(starts))
    return builder.reshape(block, eqn.outvars[0].aval.shape)


def _cut(
    builder: Builder, eqn: Any, value: Tensor, starts: Sequence[int], limits: Sequence[Any], strides: Sequence[int]
) -> Tensor:
    cuts = [
        (start, limit, value.layout.index(axis), stride)
        for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides, strict=True))
        if (start, limit, stride) != (0, value.shape[axis], 1)
    ]
    require(all(isinstance(each, int) for row in cuts for each in row), builder, eqn, "symbolic limits")
    if not cuts:
        return value
    columns = zip(("starts", "ends", "axes", "steps"), zip(*cuts, strict=True), strict=True)
    inputs = [value.name, *(builder.constant(np.array(column, np.int64), name) for name, column in columns)]
    sizes = {value.layout[axis]: -((start - limit) // stride) for start, limit, axis, stride in cuts}
    shape = tuple(sizes.get(axis, dim) for axis, dim in enumerate(value.shape))
    return builder.emit("Slice", inputs, replace(value, shape=shape), value.layout)


@rule("rev")
def reverse(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Slice with steps of -1."""
    axes = [value.layout.index(axis) for axis in eqn.params["dimensions"]]
    ends = [np.iinfo(np.int64).min + 1] * len(axes)  # past the first element; -1 would mean the last
    columns = {"starts": [-1] * len(axes), "ends": ends, "axes": axes, "steps": [-1] * len(axes)}
    inputs = [value.name, *(builder.constant(np.array(column, np.int64), name) for name, column in columns.items())]
    return builder.emit("Slice", inputs, value, value.layout)


@rule("stack")
def stack(builder: Builder, eqn: Any, *values: Value) -> Tensor:
    """Concat along an axis of size 1 that each operand gets."""
    shape, axis = eqn.outvars[0].aval.shape, eqn.params["axis"]
    single = (*shape[:axis], 1, *shape[axis + 1 :])
    raised = [builder.reshape(builder.as_tensor(each), single) for each in values]
    layout = common_layout(*raised)
    inputs = [builder.stored(each, layout) for each in raised]
    return builder.emit("Concat", inputs, eqn.outvars[0].aval, layout, axis=layout.index(axis))
