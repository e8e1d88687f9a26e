"""The bits of integers, which this operator set has no operators for: unpacked by division, packed by a sum."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression, emit
from export.rules.registry import require, rule

_LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}
_REDUCED = {"reduce_and": "ReduceMin", "reduce_or": "ReduceSum", "reduce_xor": "ReduceSum"}


@rule("and", "or", "xor")
def logic(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Of booleans, or of each bit."""
    op = _LOGIC[eqn.primitive.name]
    if left.dtype == np.bool_:
        return emit(builder, op, eqn.outvars[0].aval, [left, right])
    a, b = (_bits(Expression(builder, each)) for each in (left, right))
    combined = {"And": lambda: a * b, "Or": lambda: a.apply("Max", b), "Xor": lambda: (a - b).apply("Abs")}[op]()
    return _pack(combined, left.dtype)


@rule("not")
def complement(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Of a boolean, or of all bits: -1 - x, or the largest number less x."""
    if value.dtype == np.bool_:
        return builder.emit("Not", [value.name], value, value.layout)
    top = -1 if value.dtype.kind == "i" else np.iinfo(value.dtype).max
    return (top - Expression(builder, value).widen()).cast(value.dtype).tensor


@rule("shift_left", "shift_right_arithmetic", "shift_right_logical")
def shift(builder: Builder, eqn: Any, value: Value, places: Value) -> Tensor:
    """Multiplication by, or division rounded down by, a power of two; beyond the last bit only the sign is left."""
    bits = np.iinfo(value.dtype).bits
    if bits == 64:  # the powers of two end before
        short = isinstance(places, np.ndarray) and bool(np.all((places >= 0) & (places < 63)))
        require(short and eqn.primitive.name != "shift_right_logical", builder, eqn, f"these {value.dtype} operands")
    x, count = Expression(builder, value).cast(np.int64), Expression(builder, places).cast(np.int64)
    if eqn.primitive.name == "shift_right_logical":
        x = x % (1 << bits)
    elif value.dtype.kind == "u":
        x = (x + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)  # the highest bit is a sign here too
    count = (count < 0).where(np.asarray(bits, np.int64), count.apply("Min", bits))
    factor = Expression(builder, np.asarray(2, np.int64)).apply("Pow", count)
    moved = x * factor if eqn.primitive.name == "shift_left" else (x - x % factor) / factor
    return moved.cast(value.dtype).tensor


@rule("population_count")
def population_count(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """How many bits are set."""
    return _bits(Expression(builder, value)).reduce("ReduceSum", len(value.shape)).cast(value.dtype).tensor


@rule("clz")
def leading_zeros(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """How many bits are above the highest that is set."""
    count = np.iinfo(value.dtype).bits
    highest = (_bits(Expression(builder, value)) * np.arange(1, count + 1)).reduce("ReduceMax", len(value.shape))
    return (count - highest).cast(value.dtype).tensor


def reduce_bits(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """And, or, xor of the integers along axes, bit by bit."""
    bits = _bits(Expression(builder, value))
    for axis in sorted(eqn.params["axes"], reverse=True):
        bits = bits.reduce(_REDUCED[eqn.primitive.name], axis)
    one = bits % 2 if eqn.primitive.name == "reduce_xor" else bits.apply("Min", 1)  # over nothing ReduceMin is large
    return _pack(one, value.dtype)


def _bits(x: Expression) -> Expression:
    """Zeros and ones of int64 along a new last axis, the lowest bit first."""
    count = np.iinfo(x.dtype).bits
    if count == 64:
        raise NotImplementedError(f"the bits of {x.dtype}")
    powers = 1 << np.arange(count, dtype=np.int64)
    unsigned = (x.cast(np.int64) % (1 << count)).reshape((*x.shape, 1))
    if isinstance(unsigned.value, np.ndarray):
        return Expression(x.builder, unsigned.value // powers % 2)
    return (unsigned / powers) % 2


def _pack(bits: Expression, dtype: np.dtype[Any]) -> Tensor:
    powers = 1 << np.arange(np.iinfo(dtype).bits, dtype=np.int64)
    return (bits * powers).reduce("ReduceSum", len(bits.shape) - 1).cast(dtype).tensor
