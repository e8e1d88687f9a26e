"""Sorting, and the largest elements."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import number_dtype
from export.rules.registry import require, rule


@rule("sort")
def sort(builder: Builder, eqn: Any, *operands: Value) -> list[Tensor]:
    """Stable sorts by one key after the other, the last key first."""
    axis, results = eqn.params["dimension"], [builder.as_tensor(each) for each in operands]
    for key in reversed(range(eqn.params["num_keys"])):
        order = _order(builder, results[key], axis, results[key].shape[axis], largest=False)
        results = [_take(builder, each, order, axis) for each in results]
    return results


@rule("top_k", "approx_top_k")
def top_k(builder: Builder, eqn: Any, value: Tensor) -> list[Tensor]:
    """Values and positions of the largest, the first of equals first."""
    params = eqn.params
    exact = eqn.primitive.name == "top_k"
    axis = params["axis" if exact else "reduction_dimension"] % len(value.shape)
    largest = exact or params["is_max_k"]
    require(exact or params["aggregate_to_topk"], builder, eqn, "partial results")
    order = _order(builder, value, axis, params["k"], largest=largest)
    return [_take(builder, value, order, axis), builder.cast(order, eqn.outvars[1].aval.dtype)]


def _order(builder: Builder, value: Tensor, axis: int, count: Any, *, largest: bool) -> Tensor:
    """Positions along an axis of the `count` first elements."""
    value = builder.cast(value, number_dtype(value.dtype))
    shape = (*value.shape[:axis], count, *value.shape[axis + 1 :])
    like = Tensor("", shape, np.dtype(np.int64), ())
    position = value.layout.index(axis)
    inputs = [value.name, builder.sizes([count])]
    return builder.emit("TopK", inputs, like, value.layout, position=1, axis=position, largest=int(largest), sorted=1)


def _take(builder: Builder, value: Tensor, order: Tensor, axis: int) -> Tensor:
    like = Tensor("", order.shape, value.dtype, ())
    inputs = [value.name, builder.stored(order, value.layout)]
    return builder.emit("GatherElements", inputs, like, value.layout, axis=value.layout.index(axis))
