"""Primitives that move, repeat, join and cut, and compute nothing."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, renumber
from export.rules.registry import common_layout, require, rule


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
    strides = eqn.params["strides"] or (1,) * len(starts)
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
    return builder.emit("Slice", inputs, eqn.outvars[0].aval, value.layout)
