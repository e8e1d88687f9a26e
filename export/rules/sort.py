"""Sorting, and the largest elements, by TopK: ONNX has no sort."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import number_dtype
from export.rules.registry import require, rule


@rule("sort")
def sort(builder: Builder, eqn: Any, *operands: Value) -> list[Tensor]:
    """Sorts all operands by one key after the other, the last key first; each sort is stable."""
    axis, results = eqn.params["dimension"], [builder.as_tensor(operand) for operand in operands]
    for key in reversed(range(eqn.params["num_keys"])):
        order = _order(builder, results[key], axis, results[key].shape[axis], largest=False)
        results = [_take(builder, value, order, axis) for value in results]
    return results


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
    """Returns the positions of the `count` largest or smallest elements along an axis, in order."""
    value = builder.cast(value, number_dtype(value.dtype))
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
