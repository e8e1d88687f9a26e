"""Matrix products."""

import math
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, identity
from export.expression import number_dtype
from export.graph import Shape, exported_dtype
from export.rules.registry import rule


@rule("dot_general")
def dot_general(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Gemm or a convolution for a product with a constant matrix, MatMul of stacked matrices otherwise."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    aval = eqn.outvars[0].aval
    dtype = exported_dtype(aval.dtype)
    wide = number_dtype(dtype)
    left, right = builder.cast(left, wide), builder.cast(right, wide)
    left_free, right_free = _free(left, left_sum, left_batch), _free(right, right_sum, right_batch)
    single = wide == np.float32 and len(left_sum) == 1 and not left_batch
    if single and isinstance(right, np.ndarray) and isinstance(left, Tensor) and len(right_free) == 1:
        matrix, order = right.transpose(*right_sum, *right_free), (*left_free, None)
        return _by_matrix(builder, aval, left, matrix, left_sum[0], order)
    if single and isinstance(left, np.ndarray) and isinstance(right, Tensor) and len(left_free) == 1:
        matrix, order = left.transpose(*left_sum, *left_free), (None, *right_free)
        return _by_matrix(builder, aval, right, matrix, right_sum[0], order)
    batch = tuple(left.shape[axis] for axis in left_batch)
    a = _matrices(builder, left, (left_batch, left_free, left_sum))
    b = _matrices(builder, right, (right_batch, right_sum, right_free))
    like = Tensor("", (*batch, a.shape[-2], b.shape[-1]), wide, ())
    product = builder.emit("MatMul", [a.name, b.name], like)
    return builder.cast(builder.reshape(product, aval.shape), dtype)


def _by_matrix(
    builder: Builder, aval: Any, value: Tensor, matrix: np.ndarray, axis: int, order: tuple[int | None, ...]
) -> Tensor:
    """Replaces an axis by the product with a matrix [old, new], where it is stored if there is an operator for that.

    Args:
      order: for each axis of the result the one it comes from, None for the new one.
    """
    rank, position = len(value.shape), value.layout.index(axis)
    layout = tuple(order.index(None if each == axis else each) for each in value.layout)
    if rank == 2:
        rows = builder.stored(value, (1 - axis, axis))
        return builder.emit("Gemm", [rows, builder.constant(matrix, "kernel")], aval, _moved_last(layout, position))
    if position == 1 and rank > 3:
        kernel = builder.constant(matrix.T.reshape(*matrix.T.shape, *[1] * (rank - 2)), "kernel")
        ones = [1] * (rank - 2)
        attributes = {"kernel_shape": ones, "strides": ones, "dilations": ones, "pads": [0, 0] * (rank - 2), "group": 1}
        return builder.emit("Conv", [value.name, kernel], aval, layout, **attributes)
    if position == rank - 2:
        return builder.emit("MatMul", [builder.constant(matrix.T, "kernel"), value.name], aval, layout)
    last = _moved_last(value.layout, position)
    inputs = [builder.stored(value, last), builder.constant(matrix, "kernel")]
    return builder.emit("MatMul", inputs, aval, _moved_last(layout, position))


def _moved_last(layout: tuple[int, ...], position: int) -> tuple[int, ...]:
    return (*layout[:position], *layout[position + 1 :], layout[position])


def _free(value: Value, summed: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(value.shape)) if axis not in (*summed, *batch))


def _matrices(builder: Builder, value: Value, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """The value as stacked matrices: batch axes kept, rows and columns each made one axis."""
    batch, rows, columns = groups
    order = (*batch, *rows, *columns)
    shape: Shape = tuple(value.shape[axis] for axis in order)
    name = builder.stored(value, order, "kernel")
    kept = shape[: len(batch)]
    sizes = (_product(value, rows), _product(value, columns))
    return builder.reshape(Tensor(name, shape, value.dtype, identity(len(shape))), (*kept, *sizes))


def _product(value: Value, axes: tuple[int, ...]) -> Any:
    return math.prod(value.shape[axis] for axis in axes)
