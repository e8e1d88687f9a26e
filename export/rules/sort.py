"""Sorting, and the largest elements, by TopK: ONNX has no sort."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression, number_dtype
from export.rules.registry import require, rule


@rule("sort")
def sort(builder: Builder, eqn: Any, *operands: Value) -> list[Tensor]:
    """Sorts all operands by one key after the other, the last key first; each sort is stable."""
    axis, results = eqn.params["dimension"], [builder.as_tensor(operand) for operand in operands]
    for key in reversed(range(eqn.params["num_keys"])):
        results = _sort_by(builder, results[key], results, axis)
        # Then NaNs come behind infinity, in place of which they were sorted.
        if results[key].dtype.kind == "f":
            results = _sort_by(builder, _is_nan(builder, results[key]).tensor, results, axis)
    return results


def _sort_by(builder: Builder, key: Tensor, values: list[Tensor], axis: int) -> list[Tensor]:
    order = _order(builder, key, axis, key.shape[axis], largest=False)
    return [_take(builder, value, order, axis) for value in values]


def _is_nan(builder: Builder, value: Tensor) -> Expression:
    return Expression(builder, value).apply("IsNaN")


@rule("top_k", "approx_top_k")
def top_k(builder: Builder, eqn: Any, value: Tensor) -> list[Tensor]:
    """Returns values and positions of the k largest elements; of equal elements the first comes first."""
    params = eqn.params
    exact = eqn.primitive.name == "top_k"
    axis = params["axis" if exact else "reduction_dimension"] % len(value.shape)
    largest = exact or params["is_max_k"]
    require(exact or params["aggregate_to_topk"], builder, eqn, "partial results")
    order = _order(builder, value, axis, params["k"], largest=largest)
    return [_take(builder, value, order, axis), builder.cast(order, eqn.outvars[1].aval.dtype)]


def _order(builder: Builder, value: Tensor, axis: int, count: Any, *, largest: bool) -> Tensor:
    """Returns the positions of the `count` largest or smallest elements along an axis, in order.

    NaN counts as infinity: onnxruntime up to 1.27 at least puts numbers beside a NaN in any order.
    """
    value = builder.cast(value, number_dtype(value.dtype))
    if value.dtype.kind == "f":
        value = _is_nan(builder, value).where(np.asarray(np.inf, value.dtype), value).tensor
    shape = (*value.shape[:axis], count, *value.shape[axis + 1 :])
    like = Tensor("", shape, np.dtype(np.int64), ())
    axis = value.layout.index(axis)
    # The second output of TopK holds the positions.
    inputs = [value.name, builder.sizes([count])]
    return builder.emit("TopK", inputs, like, value.layout, position=1, axis=axis, largest=int(largest), sorted=1)


def _take(builder: Builder, value: Tensor, order: Tensor, axis: int) -> Tensor:
    like = Tensor("", order.shape, value.dtype, ())
    inputs = [value.name, builder.in_layout(order, value.layout)]
    return builder.emit("GatherElements", inputs, like, value.layout, axis=value.layout.index(axis))
