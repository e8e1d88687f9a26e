"""Primitives that move, repeat, join and slice elements without computing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, renumber
from export.expression import Expression, common_layout, number_dtype
from export.graph import Shape, exported_dtype
from export.rules.registry import rule


@rule("reshape", "squeeze", "expand_dims")
def reshape(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Reshapes to the shape of the result; `dimensions` is the order in which the axes are read."""
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        value = permute(value, eqn.params["dimensions"])
    return builder.reshape(value, eqn.outvars[0].aval.shape)


@rule("transpose")
def transpose(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Renumbers the axes: the layout makes a transpose free until an operator needs a certain order."""
    return permute(value, eqn.params["permutation"])


def permute(value: Tensor, order: Sequence[int]) -> Tensor:
    """Returns a value with axis `order[i]` as axis i; nothing is moved."""
    layout = renumber(value.layout, {old: new for new, old in enumerate(order)})
    return Tensor(value.name, tuple(value.shape[axis] for axis in order), value.dtype, layout)


@rule("broadcast_in_dim", "broadcast_to")
def broadcast_in_dim(builder: Builder, eqn: Any, value: Value, *_: Value) -> Tensor:
    """Inserts axes of size 1 and repeats the value along the axes where the result is larger."""
    shape = eqn.outvars[0].aval.shape
    axes = eqn.params.get("broadcast_dimensions", range(len(shape) - len(value.shape), len(shape)))
    sizes = dict(zip(axes, value.shape, strict=True))
    if isinstance(value, np.ndarray):
        value = value.reshape([sizes.get(axis, 1) for axis in range(len(shape))])
    value = builder.reshape(builder.as_tensor(value), tuple(sizes.get(axis, 1) for axis in range(len(shape))))
    return builder.expand(value, shape)


@rule("dim_as_value")
def size(builder: Builder, eqn: Any) -> Value:
    """Computes a symbolic size as a number, which a mean over the batch divides by."""
    return builder.cast(builder.size(eqn.params["dim"]), eqn.outvars[0].aval.dtype)


@rule("empty")
def empty(builder: Builder, eqn: Any, *_: Value) -> Value:
    """Makes zeros; every element will be overwritten."""
    return filled(builder, eqn.outvars[0].aval, 0)


def filled(builder: Builder, like: Any, number: Any) -> Value:
    """Returns an array of equal numbers, which the graph makes if its shape is symbolic."""
    dtype = exported_dtype(like.dtype)
    if all(isinstance(dim, int) for dim in like.shape):
        return np.full(like.shape, number, dtype)
    return builder.expand(builder.as_tensor(np.full((1,) * len(like.shape), number, dtype)), like.shape)


@rule("iota")
def iota(builder: Builder, eqn: Any, *_: Value) -> Tensor:
    """Makes positions along an axis; only arrays with a symbolic size get here."""
    shape, axis, dtype = eqn.outvars[0].aval.shape, eqn.params["dimension"], exported_dtype(eqn.params["dtype"])
    count = shape[axis]
    if isinstance(count, int):
        numbers: Value = np.arange(count, dtype=dtype)
    else:
        numbers = builder.cast(arange(builder, count), dtype)
    sizes = [1] * len(shape)
    sizes[axis] = count
    return builder.expand(builder.reshape(builder.as_tensor(numbers), tuple(sizes)), shape)


def arange(builder: Builder, count: Any) -> Value:
    """Returns 0, 1, ... up to a size, as int64."""
    if isinstance(count, int):
        return np.arange(count, dtype=np.int64)
    bounds = [builder.constant(np.asarray(0, np.int64)), builder.as_tensor(builder.size(count)).name]
    like = Tensor("", (count,), np.dtype(np.int64), ())
    return builder.emit("Range", [*bounds, builder.constant(np.asarray(1, np.int64))], like)


@rule("concatenate")
def concatenate(builder: Builder, eqn: Any, *values: Value) -> Tensor:
    """Adds Concat in the layout of the operands."""
    return concatenate_parts(builder, eqn.outvars[0].aval, values, eqn.params["dimension"])


def concatenate_parts(builder: Builder, like: Any, values: Sequence[Value], axis: int) -> Tensor:
    """Joins values along an axis; empty ones are left out."""
    values = [value for value in values if not _same(value.shape[axis], 0)] or values[:1]
    layout = common_layout(*values)
    inputs = [builder.in_layout(value, layout) for value in values]
    if len(inputs) == 1:
        return replace(builder.as_tensor(values[0]), name=inputs[0], layout=layout)
    return builder.emit("Concat", inputs, like, layout, axis=layout.index(axis))


@rule("pad")
def pad(builder: Builder, eqn: Any, value: Value, fill_value: Value) -> Tensor:
    """Pads a border, crops where it is negative, and dilates (interior padding)."""
    padded = pad_with(builder, builder.as_tensor(value), fill_value, eqn.params["padding_config"])
    # An axis that may be empty has another formula for its size.
    return replace(padded, shape=tuple(eqn.outvars[0].aval.shape))


def pad_with(builder: Builder, value: Tensor, fill_value: Value, config: Sequence[tuple[int, int, int]]) -> Tensor:
    """Pads each axis.

    Args:
      builder: the builder.
      value: the tensor.
      fill_value: the scalar to pad with.
      config: for each axis `(low, high, gap)`, the numbers of elements that are added before the first one, after the
        last one, and between neighbours; negative borders crop.
    """
    config = [(_plain(low), _plain(high), _plain(gap)) for low, high, gap in config]
    # Gaps first: the border is added around what they enlarged.
    for axis, (_, _, gap) in enumerate(config):
        if gap and not _same(value.shape[axis], 0):
            value = _dilate(builder, value, fill_value, axis, gap)
    # Negative borders are cropped by a Slice.
    border = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    value = _pad_border(builder, value, fill_value, border)
    starts = [max(-low, 0) for low, _, _ in config]
    limits = [dim - max(-high, 0) for dim, (_, high, _) in zip(value.shape, config, strict=True)]
    return slice_tensor(builder, value, starts, limits)


def _pad_border(builder: Builder, value: Tensor, fill_value: Value, border: Sequence[tuple[int, int]]) -> Tensor:
    if not any(map(any, border)):
        return value
    # Pad in a type that runtimes have it for. Its pads are all lows, then all highs, in the order of storage.
    dtype = value.dtype
    wide = builder.cast(value, number_dtype(dtype))
    shape = tuple(dim + sum(pads) for dim, pads in zip(value.shape, border, strict=True))
    sizes = [border[axis][side] for side in (0, 1) for axis in value.layout]
    inputs = [wide.name, builder.constant(np.array(sizes, np.int64), "pads")]
    inputs.append(builder.in_layout(builder.cast(fill_value, wide.dtype), ()))
    return builder.cast(builder.emit("Pad", inputs, replace(wide, shape=shape), value.layout), dtype)


def _dilate(builder: Builder, value: Tensor, fill_value: Value, axis: int, gap: int) -> Tensor:
    """Adds `gap` elements between neighbours: each element becomes a row with its gap; the last gap is sliced off."""
    shape, count = value.shape, value.shape[axis]
    rows = builder.reshape(value, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    border = [(0, 0)] * (len(shape) + 1)
    border[axis + 1] = (0, gap)
    joined = (*shape[:axis], count * (gap + 1), *shape[axis + 1 :])
    spread = builder.reshape(_pad_border(builder, rows, fill_value, border), joined)
    limits = [*shape[:axis], count * (gap + 1) - gap, *shape[axis + 1 :]]
    return slice_tensor(builder, spread, [0] * len(shape), limits)


@rule("slice")
def slice_(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds Slice along the axes that lose elements."""
    return slice_tensor(builder, value, eqn.params["start_indices"], eqn.params["limit_indices"], eqn.params["strides"])


@rule("split")
def split(builder: Builder, eqn: Any, value: Tensor) -> list[Tensor]:
    """Adds a Slice for each part."""
    axis, parts, start = eqn.params["axis"], [], 0
    for count in eqn.params["sizes"]:
        parts.append(slice_axis(builder, value, axis, start, start + count))
        start += count
    return parts


def slice_tensor(
    builder: Builder, value: Tensor, starts: Sequence[Any], limits: Sequence[Any], strides: Sequence[int] | None = None
) -> Tensor:
    """Slices each axis from its start up to its limit (exclusive); both may be symbolic."""
    # Collect the axes that change; Slice is given these alone.
    slices = []
    shape = list(value.shape)
    for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides or (1,) * len(starts), strict=True)):
        start, limit = _plain(start), _plain(limit)
        if not (_same(start, 0) and _same(limit, value.shape[axis]) and stride == 1):
            slices.append((start, limit, value.layout.index(axis), stride))
            shape[axis] = limit - start if stride == 1 else -((start - limit) // stride)  # Rounds up.
    if not slices:
        return value
    columns = zip(("starts", "ends", "axes", "steps"), zip(*slices, strict=True), strict=True)
    inputs = [value.name, *(_column(builder, name, column) for name, column in columns)]
    return builder.emit("Slice", inputs, replace(value, shape=tuple(shape)), value.layout)


def slice_axis(builder: Builder, value: Tensor, axis: int, start: Any, limit: Any) -> Tensor:
    """Slices one axis from a start up to a limit (exclusive)."""
    starts, limits = [0] * len(value.shape), list(value.shape)
    starts[axis], limits[axis] = start, limit
    return slice_tensor(builder, value, starts, limits)


def _plain(size: Any) -> Any:
    return int(size) if isinstance(size, np.integer) else size


def _same(size: Any, other: Any) -> bool:
    return isinstance(size, int) == isinstance(other, int) and bool(size == other)


def _column(builder: Builder, name: str, sizes: Sequence[Any]) -> str:
    if all(isinstance(size, int | np.integer) for size in sizes):
        return builder.constant(np.array(sizes, np.int64), name)
    return builder.sizes(sizes)


@rule("rev")
def reverse(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds Slice with steps of -1."""
    axes = [value.layout.index(axis) for axis in eqn.params["dimensions"]]
    if not axes:
        return value
    # The end lies before the first element; -1 would mean the last one.
    ends = [np.iinfo(np.int64).min + 1] * len(axes)
    columns = {"starts": [-1] * len(axes), "ends": ends, "axes": axes, "steps": [-1] * len(axes)}
    inputs = [value.name, *(builder.constant(np.array(column, np.int64), name) for name, column in columns.items())]
    return builder.emit("Slice", inputs, value, value.layout)


@rule("stack")
def stack(builder: Builder, eqn: Any, *values: Value) -> Tensor:
    """Adds Concat along a new axis of size 1 of each operand."""
    shape, axis = eqn.outvars[0].aval.shape, eqn.params["axis"]
    single = (*shape[:axis], 1, *shape[axis + 1 :])
    raised = [Expression(builder, value).reshape(single).value for value in values]
    return concatenate_parts(builder, eqn.outvars[0].aval, raised, axis)


@rule("unstack")
def unstack(builder: Builder, eqn: Any, value: Tensor) -> list[Tensor]:
    """Adds a Slice for each part and drops the axis."""
    rows = [slice_axis(builder, value, eqn.params["axis"], row, row + 1) for row in range(len(eqn.outvars))]
    return [builder.reshape(row, var.aval.shape) for row, var in zip(rows, eqn.outvars, strict=True)]


@rule("tile")
def tile(builder: Builder, eqn: Any, value: Value) -> Tensor:
    """Adds Tile; missing axes are added in front, of the value or of the counts."""
    shape: Shape = eqn.outvars[0].aval.shape
    tensor = builder.reshape(builder.as_tensor(value), (1,) * (len(shape) - len(value.shape)) + value.shape)
    counts = eqn.params["reps"]
    counts = (1,) * (len(shape) - len(counts)) + tuple(counts)
    inputs = [tensor.name, builder.sizes([counts[axis] for axis in tensor.layout])]
    return builder.emit("Tile", inputs, replace(tensor, shape=shape), tensor.layout)
