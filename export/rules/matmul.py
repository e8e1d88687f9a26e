"""Matrix products."""

import math
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, identity
from export.expression import Expression, number_dtype
from export.graph import Shape, exported_dtype
from export.rules.registry import rule
from export.rules.shape import filled


@rule("dot_general")
def dot_general(builder: Builder, eqn: Any, left: Value, right: Value) -> Value:
    """Multiplies: by Gemm, Conv or MatMul in place with a constant matrix, else by MatMul of stacked matrices."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    aval = eqn.outvars[0].aval
    # Some runtimes leave the memory as it is if nothing is summed.
    if 0 in (left.shape[axis] for axis in left_sum):
        return filled(builder, aval, 0)
    # Integers are multiplied in a type that runtimes compute in.
    dtype = exported_dtype(aval.dtype)
    wide = number_dtype(dtype)
    left, right = builder.cast(left, wide), builder.cast(right, wide)
    left_free, right_free = _free(left, left_sum, left_batch), _free(right, right_sum, right_batch)

    # One axis of a float tensor with a constant matrix: the other axes stay where they are stored.
    single = wide == np.float32 and len(left_sum) == 1 and not left_batch
    if single and isinstance(right, np.ndarray) and isinstance(left, Tensor) and len(right_free) == 1:
        matrix, order = right.transpose(*right_sum, *right_free), (*left_free, None)
        return _by_matrix(builder, aval, left, matrix, left_sum[0], order)
    if single and isinstance(left, np.ndarray) and isinstance(right, Tensor) and len(left_free) == 1:
        matrix, order = left.transpose(*left_sum, *left_free), (None, *right_free)
        return _by_matrix(builder, aval, right, matrix, right_sum[0], order)

    # Anything else: batch axes first, all free and all summed axes merged.
    batch = tuple(left.shape[axis] for axis in left_batch)
    a = _matrices(builder, left, (left_batch, left_free, left_sum))
    b = _matrices(builder, right, (right_batch, right_sum, right_free))
    like = Tensor("", (*batch, a.shape[-2], b.shape[-1]), wide, ())
    product = builder.emit("MatMul", [a.name, b.name], like)
    return builder.cast(builder.reshape(product, aval.shape), dtype)


def _by_matrix(
    builder: Builder, aval: Any, value: Tensor, matrix: np.ndarray, axis: int, order: tuple[int | None, ...]
) -> Tensor:
    """Multiplies one axis of a tensor with a constant matrix, without a transpose if there is an operator for that.

    Args:
      builder: the builder.
      aval: shape and dtype of the result.
      value: the tensor.
      matrix: [old size of the axis, new size].
      axis: the axis.
      order: for each axis of the result the axis of the tensor that it comes from, None for the multiplied one.
    """
    rank, position = len(value.shape), value.layout.index(axis)
    layout = tuple(order.index(None if stored == axis else stored) for stored in value.layout)
    if rank == 2:
        rows = builder.in_layout(value, (1 - axis, axis))
        return builder.emit("Gemm", [rows, builder.constant(matrix, "kernel")], aval, _moved_last(layout, position))
    # Channels of a channels-first feature map: a 1x1 convolution, into which the passes can fold a normalisation.
    if position == 1 and rank > 3:
        kernel = builder.constant(matrix.T.reshape(*matrix.T.shape, *[1] * (rank - 2)), "kernel")
        ones = [1] * (rank - 2)
        attributes = {"kernel_shape": ones, "strides": ones, "dilations": ones, "pads": [0, 0] * (rank - 2), "group": 1}
        return builder.emit("Conv", [value.name, kernel], aval, layout, **attributes)
    # The last axis but one: the matrix from the left.
    if position == rank - 2:
        return builder.emit("MatMul", [builder.constant(matrix.T, "kernel"), value.name], aval, layout)
    # Any other axis becomes the last one.
    last = _moved_last(value.layout, position)
    inputs = [builder.in_layout(value, last), builder.constant(matrix, "kernel")]
    return builder.emit("MatMul", inputs, aval, _moved_last(layout, position))


def _moved_last(layout: tuple[int, ...], position: int) -> tuple[int, ...]:
    return (*layout[:position], *layout[position + 1 :], layout[position])


def _free(value: Value, summed: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(value.shape)) if axis not in (*summed, *batch))


def _matrices(builder: Builder, value: Value, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """Returns a value as matrices [*batch, rows, columns]: all axes of rows are merged, and all axes of columns."""
    batch, rows, columns = groups
    order = (*batch, *rows, *columns)
    shape: Shape = tuple(value.shape[axis] for axis in order)
    name = builder.in_layout(value, order, "kernel")
    kept = shape[: len(batch)]
    sizes = (_product(value, rows), _product(value, columns))
    return builder.reshape(Tensor(name, shape, value.dtype, identity(len(shape))), (*kept, *sizes))


def _product(value: Value, axes: tuple[int, ...]) -> Any:
    return math.prod(value.shape[axis] for axis in axes)


@rule("scaled_matmul_wrapper")
def scaled_matmul(builder: Builder, eqn: Any, left: Value, right: Value, *scales: Value) -> Tensor:
    """Multiplies matrices [batch, rows, k] and [batch, columns, k] whose blocks along k have a scale each."""
    a, b = (_unscaled(builder, matrix, scale) for matrix, scale in zip((left, right), scales, strict=True))
    names = [builder.in_layout(a.value, (0, 1, 2)), builder.in_layout(b.value, (0, 2, 1))]
    return builder.emit("MatMul", names, eqn.outvars[0].aval)


def _unscaled(builder: Builder, matrix: Value, scales: Value) -> Expression:
    """Multiplies each block of a matrix with its scale."""
    blocks = scales.shape[-1]
    parts = Expression(builder, matrix).reshape((*matrix.shape[:-1], blocks, matrix.shape[-1] // blocks))
    return (parts * Expression(builder, scales).reshape((*scales.shape, 1))).reshape(matrix.shape)
