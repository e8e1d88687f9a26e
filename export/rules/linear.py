"""Matrix products."""

import math
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value, identity
from export.expression import wide_dtype
from export.graph import Shape, exported_dtype
from export.rules.registry import rule


@rule("dot_general")
def dot_general(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Gemm for a matrix by a constant matrix, MatMul of stacked matrices otherwise."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    aval = eqn.outvars[0].aval
    dtype = exported_dtype(aval.dtype)
    wide = wide_dtype(dtype)
    left, right = builder.cast(left, wide), builder.cast(right, wide)
    left_free, right_free = _free(left, left_sum, left_batch), _free(right, right_sum, right_batch)
    matrix = wide == np.float32 and isinstance(right, np.ndarray)
    if matrix and len(left_free) == len(left_sum) == len(right_free) == 1 and not left_batch:
        inputs = [
            builder.stored(left, (*left_free, *left_sum)),
            builder.stored(right, (*right_sum, *right_free), "kernel"),
        ]
        return builder.emit("Gemm", inputs, aval)
    batch = tuple(left.shape[axis] for axis in left_batch)
    a = _matrices(builder, left, (left_batch, left_free, left_sum))
    b = _matrices(builder, right, (right_batch, right_sum, right_free))
    like = Tensor("", (*batch, a.shape[-2], b.shape[-1]), wide, ())
    product = builder.emit("MatMul", [a.name, b.name], like)
    return builder.cast(builder.reshape(product, aval.shape), dtype)


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
