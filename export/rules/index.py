"""Reading and writing at computed places: gather, scatter, and the slices whose start is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, identity
from export.expression import Expression, number_dtype
from export.graph import Shape
from export.rules.registry import refusal, require, rule
from export.rules.shape import concatenate_parts, cut, pad_with, permute, positions

_CLAMPED = ("CLIP", "PROMISE_IN_BOUNDS")
"""Modes that read the nearest slice inside the array: `x[i]` promises to be inside, and jax clamps what is not."""
_PROMISED = ("PROMISE_IN_BOUNDS", "ONE_HOT")
"""Modes that write only inside the array."""
_UPDATES = {"scatter": "none", "scatter-add": "add", "scatter-mul": "mul", "scatter-sub": "add"}


@rule("gather")
def gather(builder: Builder, eqn: Any, value: Value, indices: Value) -> Value:
    """Slices at a known place, else Gather along an axis, else GatherND of points."""
    block = _known_block(builder, eqn, value, indices)
    if block is not None:
        return block
    numbers, aval = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    sizes = eqn.params["slice_sizes"]
    axes, batching = list(numbers.start_index_map), list(numbers.operand_batching_dims)
    known = all(isinstance(sizes[axis], int) for axis in axes)
    require(known, builder, eqn, "slices of a symbolic size at computed places")
    limits = [dim if axis in (*axes, *batching) else sizes[axis] for axis, dim in enumerate(value.shape)]
    source = cut(builder, builder.as_tensor(value), [0] * len(limits), limits)
    starts = Expression(builder, indices).cast(np.int64)
    room = [_room(builder, source.shape[axis], sizes[axis]) for axis in axes]
    mode = eqn.params["mode"].name
    inside = None if mode == "ONE_HOT" else _inside(starts, room)
    if inside is not None:
        starts = starts.apply("Max", 0).apply("Min", _vector(builder, room))
    if len(axes) == 1 and not batching and axes[0] in numbers.collapsed_slice_dims:
        picked = _gather_axis(builder, source, starts, axes[0])
    else:
        picked = _gather_points(builder, source, starts, numbers, sizes)
    result = _arrange(builder, picked, eqn)
    if inside is None or mode in _CLAMPED:
        return result
    mask = inside.reshape(tuple(1 if i in numbers.offset_dims else dim for i, dim in enumerate(aval.shape)))
    filling = _filling(eqn.params["fill_value"], result.dtype)
    if result.dtype == np.bool_:
        found = Expression(builder, result)
        return (~mask | found if filling else mask & found).value
    wide = Expression(builder, result).widen()
    return mask.where(wide, filling).cast(result.dtype).value


def _known_block(builder: Builder, eqn: Any, value: Value, indices: Value) -> Value | None:
    """One block inside the array, which is what indexing by numbers and slices becomes."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or not isinstance(value, Tensor):
        return None
    place = dict(zip(numbers.start_index_map, indices.tolist(), strict=True))
    room = {axis: value.shape[axis] - sizes[axis] for axis in place}
    # Of a symbolic axis only the first slice is known to be inside.
    if not all(0 <= start <= (room[axis] if isinstance(room[axis], int) else 0) for axis, start in place.items()):
        return None
    starts = [place.get(axis, 0) for axis in range(len(sizes))]
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    return builder.reshape(cut(builder, value, starts, limits), eqn.outvars[0].aval.shape)


def _room(builder: Builder, dim: Any, size: Any) -> Value:
    """The largest start of a slice of a size."""
    room = dim - size
    return np.asarray(int(room), np.int64) if isinstance(room, int) else builder.size(room)


def _vector(builder: Builder, numbers: Sequence[Value]) -> Value:
    known = [each for each in numbers if isinstance(each, np.ndarray)]
    if len(known) == len(numbers):
        return np.stack(known) if known else np.zeros(0, np.int64)
    singles = [Expression(builder, each).reshape((1,)).value for each in numbers]
    return concatenate_parts(builder, Tensor("", (len(numbers),), np.dtype(np.int64), ()), singles, 0)


def _inside(starts: Expression, room: Sequence[Value]) -> Expression | None:
    """Which slices lie in the array; None if all are known to."""
    valid = (starts >= 0) & (starts <= _vector(starts.builder, room))
    if isinstance(valid.value, np.ndarray):
        return None if valid.value.all() else Expression(starts.builder, valid.value.all(axis=-1))
    return valid.cast(np.int32).reduce("ReduceMin", len(starts.shape) - 1).cast(np.bool_)


def _filling(value: Any, dtype: np.dtype[Any]) -> Any:
    """What jax reads outside: not a number, true, the lowest signed or the highest unsigned integer."""
    if value is not None:
        return value
    if dtype == np.bool_:
        return True
    if dtype.kind == "f":
        return np.nan
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


@dataclass(frozen=True)
class _Picked:
    """What was gathered: first the axes of the indices, then the operand's that are left, by their numbers there."""

    tensor: Tensor
    places: int
    axes: tuple[int, ...]


def _gather_axis(builder: Builder, source: Tensor, starts: Expression, axis: int) -> _Picked:
    """Gather along one axis of the stored order."""
    places: Shape = starts.shape[:-1]
    rest = tuple(each for each in range(len(source.shape)) if each != axis)
    count, position = len(places), source.layout.index(axis)
    number = {each: count + i for i, each in enumerate(rest)}
    front, back = source.layout[:position], source.layout[position + 1 :]
    layout = (*(number[each] for each in front), *range(count), *(number[each] for each in back))
    like = Tensor("", (*places, *(source.shape[each] for each in rest)), source.dtype, ())
    index = builder.stored(starts.reshape(places).value, identity(count), "indices")
    return _Picked(builder.emit("Gather", [source.name, index], like, layout, axis=position), count, rest)


def _gather_points(builder: Builder, source: Tensor, starts: Expression, numbers: Any, sizes: Shape) -> _Picked:
    """GatherND of each element along the indexed axes; the windows along them are points of their own."""
    axes, batching = list(numbers.start_index_map), list(numbers.operand_batching_dims)
    shared = list(numbers.start_indices_batching_dims)
    rest = [axis for axis in range(len(source.shape)) if axis not in (*axes, *batching)]
    order = (*batching, *axes, *rest)
    data = builder.stored(source, order)
    windows = [sizes[axis] for axis in axes]
    places = starts.shape[:-1]
    points = _points(starts, windows)
    count = len(places)
    free = [axis for axis in range(count) if axis not in shared]
    moved = (*shared, *free, *range(count, count + len(axes) + 1))
    index = builder.stored(points.value, moved, "indices")
    stored: Shape = tuple(points.shape[axis] for axis in moved[:-1])
    like = Tensor("", (*stored, *(source.shape[axis] for axis in rest)), source.dtype, ())
    found = builder.emit("GatherND", [data, index], like, batch_dims=len(batching))
    # Back to the order of the places: axis i of what was found is axis moved[i] of the result.
    layout = (*moved[:-1], *range(len(stored), len(stored) + len(rest)))
    shape = tuple(found.shape[layout.index(axis)] for axis in range(len(layout)))
    return _Picked(Tensor(found.name, shape, found.dtype, layout), count, (*axes, *rest))


def _points(starts: Expression, windows: Sequence[int]) -> Expression:
    """Starts [places..., k] as the points of their windows [places..., *windows, k]."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in windows), indexing="ij"), axis=-1)
    places, rank = starts.shape[:-1], starts.shape[-1]
    spread = starts.reshape((*places, *[1] * len(windows), rank))
    if grid.size == rank:  # every window is one point
        return spread
    return spread + grid.reshape((*[1] * len(places), *windows, rank))


def _arrange(builder: Builder, picked: _Picked, eqn: Any) -> Tensor:
    """The result's order: offset axes where jax wants them, the places in the gaps."""
    numbers, aval = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    offsets = [axis for axis in range(len(eqn.params["slice_sizes"])) if axis not in gone]
    target = dict(zip(offsets, numbers.offset_dims, strict=True))
    places = [i for i in range(len(aval.shape)) if i not in numbers.offset_dims]
    # Collapsed axes have size 1: drop them first.
    kept = [i for i, axis in enumerate(picked.axes) if axis in target]
    shape = (*picked.tensor.shape[: picked.places], *(picked.tensor.shape[picked.places + i] for i in kept))
    tensor = _drop(builder, picked, kept, shape)
    order = [*places, *(target[picked.axes[i]] for i in kept)]  # axis i of the tensor is axis order[i] of the result
    layout = tuple(order[axis] for axis in tensor.layout)
    return Tensor(tensor.name, tuple(aval.shape), tensor.dtype, layout)


def _drop(builder: Builder, picked: _Picked, kept: Sequence[int], shape: Shape) -> Tensor:
    if len(shape) == len(picked.tensor.shape):
        return picked.tensor
    stays = [*range(picked.places), *(picked.places + i for i in kept)]
    number = {axis: i for i, axis in enumerate(stays)}
    layout = tuple(number[axis] for axis in picked.tensor.layout if axis in number)
    stored = Tensor(
        picked.tensor.name, picked.tensor.stored_shape, picked.tensor.dtype, identity(len(picked.tensor.shape))
    )
    flat = builder.reshape(stored, tuple(shape[axis] for axis in layout))
    return Tensor(flat.name, shape, flat.dtype, layout)


@rule("dynamic_slice")
def dynamic_slice(builder: Builder, eqn: Any, value: Value, *starts: Value) -> Tensor:
    """Slice whose start is computed, and moved into the array as jax does."""
    source, sizes = builder.as_tensor(value), eqn.params["slice_sizes"]
    axes = [axis for axis, dim in enumerate(source.shape) if not _equal(dim, sizes[axis])]
    if not axes:
        return source
    begins = [_bounded(builder, starts[axis], _room(builder, source.shape[axis], sizes[axis])) for axis in axes]
    ends = [begin + builder.size(sizes[axis]) for begin, axis in zip(begins, axes, strict=True)]
    columns = [_vector(builder, [each.value for each in column]) for column in (begins, ends)]
    names = [builder.stored(each, (0,), "starts") for each in columns]
    along = builder.constant(np.array([source.layout.index(axis) for axis in axes], np.int64), "axes")
    return builder.emit("Slice", [source.name, *names, along], eqn.outvars[0].aval, source.layout)


@rule("dynamic_update_slice")
def dynamic_update_slice(builder: Builder, eqn: Any, value: Value, update: Value, *starts: Value) -> Value:
    """ScatterND of the block along the axes that it does not fill."""
    axes = [axis for axis, dim in enumerate(value.shape) if not _equal(dim, update.shape[axis])]
    if not axes:
        return update
    begins = [_bounded(builder, starts[axis], _room(builder, value.shape[axis], update.shape[axis])) for axis in axes]
    start = Expression(builder, _vector(builder, [each.value for each in begins]))
    points = _points(start, [update.shape[axis] for axis in axes])
    order = (*axes, *(axis for axis in range(len(value.shape)) if axis not in axes))
    inputs = [
        builder.stored(value, order),
        builder.stored(points.value, identity(len(points.shape)), "indices"),
        builder.stored(update, order),
    ]
    return builder.emit("ScatterND", inputs, eqn.outvars[0].aval, order)


def _equal(dim: Any, size: Any) -> bool:
    return bool(dim == size)


def _bounded(builder: Builder, start: Value, room: Value) -> Expression:
    return Expression(builder, start).cast(np.int64).apply("Max", 0).apply("Min", room)


@rule(*_UPDATES)
def scatter(builder: Builder, eqn: Any, value: Value, indices: Value, updates: Value) -> Value:
    """ScatterND of points, on an array with one more row for what falls outside."""
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    applies = eqn.primitive.name == "scatter" and params["update_jaxpr"] is not None
    require(not applies, builder, eqn, "a function that is applied to elements")  # the updates mean nothing then
    axes = [*numbers.operand_batching_dims, *numbers.scatter_dims_to_operand_dims]
    sizes = _window_sizes(value.shape, updates.shape, numbers)
    starts = _with_batch(builder, Expression(builder, indices).cast(np.int64), numbers, value.shape)
    room = [_room(builder, value.shape[axis], sizes[axis]) for axis in axes]
    source = builder.as_tensor(value)
    mode = params["mode"].name
    inside = None if mode in _PROMISED else _inside(starts, room)
    if inside is not None and mode == "CLIP":
        starts, inside = starts.apply("Max", 0).apply("Min", _vector(builder, room)), None
    points = _points(starts, [sizes[axis] for axis in axes])
    if inside is not None:
        spread = inside.reshape((*inside.shape, *[1] * (len(axes) + 1)))
        outside = np.array([0] * (len(axes) - 1) + [1])
        require(isinstance(source.shape[axes[-1]], int), builder, eqn, "places outside a symbolic size")
        points = spread.where(points, (outside * source.shape[axes[-1]]).astype(np.int64))
        config = [(0, int(axis == axes[-1]), 0) for axis in range(len(source.shape))]
        source = pad_with(builder, source, np.zeros((), source.dtype), config)
    result = _scatter_points(builder, eqn, source, points, updates, sizes)
    limits = [dim if isinstance(dim, int) else source.shape[axis] for axis, dim in enumerate(value.shape)]
    return cut(builder, result, [0] * len(limits), limits)


def _window_sizes(shape: Shape, updates: Shape, numbers: Any) -> list[Any]:
    """How much of each axis of the operand one update covers."""
    single = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = iter(numbers.update_window_dims)
    return [1 if axis in single else updates[next(windows)] for axis in range(len(shape))]


def _with_batch(builder: Builder, starts: Expression, numbers: Any, shape: Shape) -> Expression:
    """The positions along the axes that operand and indices share, put before the indices."""
    places, columns = starts.shape[:-1], []
    for operand_axis, axis in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        row = Expression(builder, positions(builder, shape[operand_axis]))
        sizes = [1] * (len(places) + 1)
        sizes[axis] = shape[operand_axis]
        columns.append(builder.expand(row.reshape(tuple(sizes)).tensor, (*places, 1)))
    if not columns:
        return starts
    like = Tensor("", (*places, len(columns) + starts.shape[-1]), np.dtype(np.int64), ())
    return Expression(builder, concatenate_parts(builder, like, [*columns, starts.value], len(places)))


def _scatter_points(
    builder: Builder, eqn: Any, source: Tensor, points: Expression, updates: Value, sizes: Sequence[Any]
) -> Tensor:
    numbers = eqn.params["dimension_numbers"]
    axes = [*numbers.operand_batching_dims, *numbers.scatter_dims_to_operand_dims]
    rest = [axis for axis in range(len(source.shape)) if axis not in axes]
    if any(not _equal(sizes[axis], source.shape[axis]) for axis in rest):
        raise refusal(builder, eqn, "updates of a part of an axis that is not indexed")
    windows = dict(
        zip([a for a in range(len(sizes)) if a not in _single(numbers)], numbers.update_window_dims, strict=True)
    )
    places = [i for i in range(len(updates.shape)) if i not in numbers.update_window_dims]
    order = [*places, *(windows[axis] for axis in (*axes, *rest) if axis in windows)]
    arranged = updates.transpose(order) if isinstance(updates, np.ndarray) else permute(updates, order)
    moved = Expression(builder, arranged)
    if eqn.primitive.name == "scatter-sub":
        moved = -moved
    shape = [updates.shape[i] for i in places]
    moved = moved.reshape((*shape, *(sizes[axis] for axis in (*axes, *rest))))
    data = (*axes, *rest)
    reduction = _UPDATES[eqn.primitive.name]
    dtype = source.dtype if reduction == "none" else number_dtype(source.dtype)
    wide = builder.cast(source, dtype)
    inputs = [
        builder.stored(wide, data),
        builder.stored(points.value, identity(len(points.shape)), "indices"),
        builder.stored(builder.cast(moved.value, dtype), identity(len(moved.shape)), "updates"),
    ]
    attributes = {} if reduction == "none" else {"reduction": reduction}
    return builder.cast(builder.emit("ScatterND", inputs, wide, data, **attributes), source.dtype)


def _single(numbers: Any) -> tuple[int, ...]:
    return (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
