"""Indexing: gather, scatter, and slices whose start is computed.

In jax, gather and scatter move slices: each index is the start of a slice of a given size along the indexed axes. ONNX
has Gather along one axis, and GatherND and ScatterND of single elements along the first axes; slices larger than one
element become one index for each of their elements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, identity
from export.expression import Expression, number_dtype
from export.graph import Shape
from export.rules.registry import refusal, require, rule
from export.rules.shape import arange, concatenate_parts, pad_with, permute, slice_tensor

_CLAMPED = ("CLIP", "PROMISE_IN_BOUNDS")
"""Modes of gather that clamp indices to the array: `x[i]` promises to be in bounds, and JAX clamps it if it is not."""
_PROMISED = ("PROMISE_IN_BOUNDS", "ONE_HOT")
"""Modes of scatter whose indices are always in bounds."""
_REDUCTIONS = {"scatter": "none", "scatter-add": "add", "scatter-mul": "mul", "scatter-sub": "add"}


@rule("gather")
def gather(builder: Builder, eqn: Any, value: Value, indices: Value) -> Value:
    """Adds Slice if the index is constant, else Gather along one axis, else GatherND."""
    static = _static_slice(builder, eqn, value, indices)
    if static is not None:
        return static

    # Slice the axes that are not indexed first: they start at 0.
    numbers, aval = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    sizes = eqn.params["slice_sizes"]
    axes, batching = list(numbers.start_index_map), list(numbers.operand_batching_dims)
    known = all(isinstance(sizes[axis], int) for axis in axes)
    require(known, builder, eqn, "slices of a symbolic size at computed positions")
    limits = [dim if axis in (*axes, *batching) else sizes[axis] for axis, dim in enumerate(value.shape)]
    source = slice_tensor(builder, builder.as_tensor(value), [0] * len(limits), limits)

    # Clamp the starts so that all slices lie in the array. Slices that were out of bounds may be filled below.
    starts = Expression(builder, indices).cast(np.int64)
    last = [_last_start(builder, source.shape[axis], sizes[axis]) for axis in axes]
    mode = eqn.params["mode"].name
    valid = None if mode == "ONE_HOT" else _in_bounds(starts, last)
    if valid is not None:
        starts = starts.apply("Max", 0).apply("Min", _vector(builder, last))

    if len(axes) == 1 and not batching and axes[0] in numbers.collapsed_slice_dims:
        gathered = _gather_axis(builder, source, starts, axes[0])
    else:
        gathered = _gather_elements(builder, source, starts, numbers, sizes)
    result = _in_result_order(builder, gathered, eqn)
    if valid is None or mode in _CLAMPED:
        return result

    # Mode FILL_OR_DROP: slices out of bounds are filled.
    mask = valid.reshape(tuple(1 if i in numbers.offset_dims else dim for i, dim in enumerate(aval.shape)))
    fill_value = _fill_value(eqn.params["fill_value"], result.dtype)
    if result.dtype == np.bool_:
        found = Expression(builder, result)
        return (~mask | found if fill_value else mask & found).value
    wide = Expression(builder, result).widen()
    return mask.where(wide, fill_value).cast(result.dtype).value


def _static_slice(builder: Builder, eqn: Any, value: Value, indices: Value) -> Value | None:
    """Adds one Slice at a constant index in bounds, as `x[:, 2, 1:3]` makes; returns None for any other gather."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or not isinstance(value, Tensor):
        return None
    indexed = dict(zip(numbers.start_index_map, indices.tolist(), strict=True))
    last = {axis: value.shape[axis] - sizes[axis] for axis in indexed}
    # Along a symbolic axis only a slice that starts at 0 is known to be in bounds.
    if not all(0 <= start <= (last[axis] if isinstance(last[axis], int) else 0) for axis, start in indexed.items()):
        return None
    starts = [indexed.get(axis, 0) for axis in range(len(sizes))]
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    return builder.reshape(slice_tensor(builder, value, starts, limits), eqn.outvars[0].aval.shape)


def _last_start(builder: Builder, dim: Any, size: Any) -> Value:
    """Returns the largest start of a slice of `size` along an axis of size `dim`."""
    last = dim - size
    return np.asarray(int(last), np.int64) if isinstance(last, int) else builder.size(last)


def _vector(builder: Builder, scalars: Sequence[Value]) -> Value:
    """Stacks int64 scalars."""
    arrays = [scalar for scalar in scalars if isinstance(scalar, np.ndarray)]
    if len(arrays) == len(scalars):
        return np.stack(arrays) if arrays else np.zeros(0, np.int64)
    singles = [Expression(builder, scalar).reshape((1,)).value for scalar in scalars]
    return concatenate_parts(builder, Tensor("", (len(scalars),), np.dtype(np.int64), ()), singles, 0)


def _in_bounds(starts: Expression, last: Sequence[Value]) -> Expression | None:
    """Returns for each slice whether it lies in the array, or None if all are known to."""
    valid = (starts >= 0) & (starts <= _vector(starts.builder, last))
    if isinstance(valid.value, np.ndarray):
        return None if valid.value.all() else Expression(starts.builder, valid.value.all(axis=-1))
    # ONNX reduces no booleans.
    return valid.cast(np.int32).reduce("ReduceMin", len(starts.shape) - 1).cast(np.bool_)


def _fill_value(value: Any, dtype: np.dtype[Any]) -> Any:
    """Returns what JAX fills with: by default NaN, true, the lowest signed or the highest unsigned integer."""
    if value is not None:
        return value
    if dtype == np.bool_:
        return True
    if dtype.kind == "f":
        return np.nan
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


@dataclass(frozen=True)
class _Gathered:
    """The slices that were gathered, before their axes are in the order of the result.

    Attributes:
      tensor: first the axes of the indices, then the axes of the operand that are left.
      batch_rank: number of axes of the indices.
      axes: which axis of the operand each of the others is.
    """

    tensor: Tensor
    batch_rank: int
    axes: tuple[int, ...]


def _gather_axis(builder: Builder, source: Tensor, starts: Expression, axis: int) -> _Gathered:
    """Adds Gather along one axis, without changing the order in which the others are stored."""
    batch: Shape = starts.shape[:-1]
    rest = tuple(kept for kept in range(len(source.shape)) if kept != axis)
    count, position = len(batch), source.layout.index(axis)
    # Gather puts the axes of the indices where the gathered axis was stored.
    number = {kept: count + i for i, kept in enumerate(rest)}
    front, back = source.layout[:position], source.layout[position + 1 :]
    layout = (*(number[kept] for kept in front), *range(count), *(number[kept] for kept in back))
    like = Tensor("", (*batch, *(source.shape[kept] for kept in rest)), source.dtype, ())
    index = builder.in_layout(starts.reshape(batch).value, identity(count), "indices")
    return _Gathered(builder.emit("Gather", [source.name, index], like, layout, axis=position), count, rest)


def _gather_elements(builder: Builder, source: Tensor, starts: Expression, numbers: Any, sizes: Shape) -> _Gathered:
    """Adds GatherND of each element of the slices along the indexed axes."""
    # GatherND indexes the first axes of the operand, after batch axes that operand and indices share.
    axes, batching = list(numbers.start_index_map), list(numbers.operand_batching_dims)
    shared = list(numbers.start_indices_batching_dims)
    rest = [axis for axis in range(len(source.shape)) if axis not in (*axes, *batching)]
    data = builder.in_layout(source, (*batching, *axes, *rest))

    # The shared axes of the indices come first as well.
    points = _element_indices(starts, [sizes[axis] for axis in axes])
    count = len(starts.shape) - 1
    free = [axis for axis in range(count) if axis not in shared]
    moved = (*shared, *free, *range(count, count + len(axes) + 1))
    index = builder.in_layout(points.value, moved, "indices")
    stored: Shape = tuple(points.shape[axis] for axis in moved[:-1])
    like = Tensor("", (*stored, *(source.shape[axis] for axis in rest)), source.dtype, ())
    found = builder.emit("GatherND", [data, index], like, batch_dims=len(batching))

    # Stored axis i is axis moved[i] of the indices; a layout brings them back in order.
    layout = (*moved[:-1], *range(len(stored), len(stored) + len(rest)))
    shape = tuple(found.shape[layout.index(axis)] for axis in range(len(layout)))
    return _Gathered(Tensor(found.name, shape, found.dtype, layout), count, (*axes, *rest))


def _element_indices(starts: Expression, windows: Sequence[int]) -> Expression:
    """Returns the index of each element of slices: from starts [*batch, k] to [*batch, *windows, k]."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in windows), indexing="ij"), axis=-1)
    batch, rank = starts.shape[:-1], starts.shape[-1]
    spread = starts.reshape((*batch, *[1] * len(windows), rank))
    # Slices of one element start at it.
    if grid.size == rank:
        return spread
    return spread + grid.reshape((*[1] * len(batch), *windows, rank))


def _in_result_order(builder: Builder, gathered: _Gathered, eqn: Any) -> Tensor:
    """Returns what was gathered in JAX's order of axes: the operand's axes at `offset_dims`, the indices' elsewhere."""
    numbers, aval = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    offsets = [axis for axis in range(len(eqn.params["slice_sizes"])) if axis not in dropped]
    target = dict(zip(offsets, numbers.offset_dims, strict=True))
    batch = [i for i in range(len(aval.shape)) if i not in numbers.offset_dims]

    # Collapsed axes have size 1 and are dropped; a layout then puts the others in order.
    kept = [i for i, axis in enumerate(gathered.axes) if axis in target]
    tensor = _drop_collapsed(builder, gathered, kept)
    order = [*batch, *(target[gathered.axes[i]] for i in kept)]  # Axis i of the tensor is axis order[i] of the result.
    layout = tuple(order[axis] for axis in tensor.layout)
    return Tensor(tensor.name, tuple(aval.shape), tensor.dtype, layout)


def _drop_collapsed(builder: Builder, gathered: _Gathered, kept: Sequence[int]) -> Tensor:
    """Drops the axes of the operand that are not among `kept`; all have size 1."""
    tensor, rank = gathered.tensor, gathered.batch_rank
    shape = (*tensor.shape[:rank], *(tensor.shape[rank + i] for i in kept))
    if len(shape) == len(tensor.shape):
        return tensor
    # Reshape the stored value, so that the order in which it is stored does not change.
    number = {axis: i for i, axis in enumerate([*range(rank), *(rank + i for i in kept)])}
    layout = tuple(number[axis] for axis in tensor.layout if axis in number)
    stored = Tensor(tensor.name, tensor.stored_shape, tensor.dtype, identity(len(tensor.shape)))
    flat = builder.reshape(stored, tuple(shape[axis] for axis in layout))
    return Tensor(flat.name, shape, flat.dtype, layout)


@rule("dynamic_slice")
def dynamic_slice(builder: Builder, eqn: Any, value: Value, *starts: Value) -> Tensor:
    """Adds Slice with a computed start, which is clamped so that the slice lies in the array, as in JAX."""
    source, sizes = builder.as_tensor(value), eqn.params["slice_sizes"]
    axes = [axis for axis, dim in enumerate(source.shape) if not _equal(dim, sizes[axis])]
    if not axes:
        return source
    begins = [_clamped(builder, starts[axis], _last_start(builder, source.shape[axis], sizes[axis])) for axis in axes]
    ends = [begin + builder.size(sizes[axis]) for begin, axis in zip(begins, axes, strict=True)]
    columns = [_vector(builder, [bound.value for bound in bounds]) for bounds in (begins, ends)]
    names = [builder.in_layout(column, (0,), "starts") for column in columns]
    along = builder.constant(np.array([source.layout.index(axis) for axis in axes], np.int64), "axes")
    return builder.emit("Slice", [source.name, *names, along], eqn.outvars[0].aval, source.layout)


@rule("dynamic_update_slice")
def dynamic_update_slice(builder: Builder, eqn: Any, value: Value, update: Value, *starts: Value) -> Value:
    """Adds ScatterND of the update's elements along the axes that it does not fill."""
    axes = [axis for axis, dim in enumerate(value.shape) if not _equal(dim, update.shape[axis])]
    if not axes:
        return update
    if 0 in update.shape:
        return value
    begins = [
        _clamped(builder, starts[axis], _last_start(builder, value.shape[axis], update.shape[axis])) for axis in axes
    ]
    start = Expression(builder, _vector(builder, [begin.value for begin in begins]))
    points = _element_indices(start, [update.shape[axis] for axis in axes])
    order = (*axes, *(axis for axis in range(len(value.shape)) if axis not in axes))
    inputs = [
        builder.in_layout(value, order),
        builder.in_layout(points.value, identity(len(points.shape)), "indices"),
        builder.in_layout(update, order),
    ]
    return builder.emit("ScatterND", inputs, eqn.outvars[0].aval, order)


def _equal(dim: Any, size: Any) -> bool:
    return bool(dim == size)


def _clamped(builder: Builder, start: Value, last: Value) -> Expression:
    return Expression(builder, start).cast(np.int64).apply("Max", 0).apply("Min", last)


@rule(*_REDUCTIONS)
def scatter(builder: Builder, eqn: Any, value: Value, indices: Value, updates: Value) -> Value:
    """Adds ScatterND; the operand gets one more row, which takes the updates that are out of bounds."""
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    # `x.at[i].apply(f)` is a scatter whose updates are ignored.
    applies = eqn.primitive.name == "scatter" and params["update_jaxpr"] is not None
    require(not applies, builder, eqn, "a function that is applied to elements")
    axes = [*numbers.operand_batching_dims, *numbers.scatter_dims_to_operand_dims]
    sizes = _window_sizes(value.shape, updates.shape, numbers)
    starts = _with_batch_indices(builder, Expression(builder, indices).cast(np.int64), numbers, value.shape)

    # Which updates are in bounds; mode CLIP moves the others.
    last = [_last_start(builder, value.shape[axis], sizes[axis]) for axis in axes]
    source = builder.as_tensor(value)
    mode = params["mode"].name
    valid = None if mode in _PROMISED else _in_bounds(starts, last)
    if valid is not None and mode == "CLIP":
        starts, valid = starts.apply("Max", 0).apply("Min", _vector(builder, last)), None
    points = _element_indices(starts, [sizes[axis] for axis in axes])

    # Mode FILL_OR_DROP: updates out of bounds go to a row that is added behind the last indexed axis.
    if valid is not None:
        spread = valid.reshape((*valid.shape, *[1] * (len(axes) + 1)))
        outside = np.array([0] * (len(axes) - 1) + [1])
        require(isinstance(source.shape[axes[-1]], int), builder, eqn, "positions outside a symbolic size")
        points = spread.where(points, (outside * source.shape[axes[-1]]).astype(np.int64))
        config = [(0, int(axis == axes[-1]), 0) for axis in range(len(source.shape))]
        source = pad_with(builder, source, np.zeros((), source.dtype), config)

    result = _scatter_elements(builder, eqn, source, points, updates, sizes)
    limits = [dim if isinstance(dim, int) else source.shape[axis] for axis, dim in enumerate(value.shape)]
    return slice_tensor(builder, result, [0] * len(limits), limits)


def _window_sizes(shape: Shape, updates: Shape, numbers: Any) -> list[Any]:
    """Returns how much of each axis of the operand one update covers."""
    single = _single_axes(numbers)
    windows = iter(numbers.update_window_dims)
    return [1 if axis in single else updates[next(windows)] for axis in range(len(shape))]


def _with_batch_indices(builder: Builder, starts: Expression, numbers: Any, shape: Shape) -> Expression:
    """Puts the positions along the batch axes, which operand and indices share, in front of each index.

    ScatterND has no batch axes, so they are indexed as any other axis.
    """
    batch, columns = starts.shape[:-1], []
    for operand_axis, axis in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        row = Expression(builder, arange(builder, shape[operand_axis]))
        sizes = [1] * (len(batch) + 1)
        sizes[axis] = shape[operand_axis]
        columns.append(builder.expand(row.reshape(tuple(sizes)).tensor, (*batch, 1)))
    if not columns:
        return starts
    like = Tensor("", (*batch, len(columns) + starts.shape[-1]), np.dtype(np.int64), ())
    return Expression(builder, concatenate_parts(builder, like, [*columns, starts.value], len(batch)))


def _scatter_elements(
    builder: Builder, eqn: Any, source: Tensor, points: Expression, updates: Value, sizes: Sequence[Any]
) -> Tensor:
    """Adds ScatterND of updates at the index of each of their elements."""
    numbers = eqn.params["dimension_numbers"]
    axes = [*numbers.operand_batching_dims, *numbers.scatter_dims_to_operand_dims]
    rest = [axis for axis in range(len(source.shape)) if axis not in axes]
    if any(not _equal(sizes[axis], source.shape[axis]) for axis in rest):
        raise refusal(builder, eqn, "updates of a part of an axis that is not indexed")

    # Order the updates as ScatterND has them: batch axes, then the indexed axes of the operand, then the others.
    window_axes = [axis for axis in range(len(sizes)) if axis not in _single_axes(numbers)]
    windows = dict(zip(window_axes, numbers.update_window_dims, strict=True))
    batch = [i for i in range(len(updates.shape)) if i not in numbers.update_window_dims]
    order = [*batch, *(windows[axis] for axis in (*axes, *rest) if axis in windows)]
    arranged = updates.transpose(order) if isinstance(updates, np.ndarray) else permute(updates, order)
    # Reductions compute in a type that runtimes compute in.
    reduction = _REDUCTIONS[eqn.primitive.name]
    dtype = source.dtype if reduction == "none" else number_dtype(source.dtype)
    wide, moved = builder.cast(source, dtype), Expression(builder, arranged).cast(dtype)
    if eqn.primitive.name == "scatter-sub":
        moved = -moved
    shape = [updates.shape[i] for i in batch]
    moved = moved.reshape((*shape, *(sizes[axis] for axis in (*axes, *rest))))

    layout = (*axes, *rest)
    inputs = [
        builder.in_layout(wide, layout),
        builder.in_layout(points.value, identity(len(points.shape)), "indices"),
        builder.in_layout(moved.value, identity(len(moved.shape)), "updates"),
    ]
    attributes = {} if reduction == "none" else {"reduction": reduction}
    return builder.cast(builder.emit("ScatterND", inputs, wide, layout, **attributes), source.dtype)


def _single_axes(numbers: Any) -> tuple[int, ...]:
    """Returns the axes of the operand along which an update covers one element."""
    return (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
