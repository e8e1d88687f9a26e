"""Bitwise operators of integers: bits are unpacked by division and packed by a sum.

This operator set has no bitwise operators but BitShift, which takes unsigned integers only.
"""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression, emit
from export.rules.registry import require, rule

_LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}
_REDUCED = {"reduce_and": "ReduceMin", "reduce_or": "ReduceSum", "reduce_xor": "ReduceSum"}


@rule("and", "or", "xor")
def logic(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Adds And, Or or Xor of booleans, or computes it bit by bit from zeros and ones."""
    op = _LOGIC[eqn.primitive.name]
    if left.dtype == np.bool_:
        return emit(builder, op, eqn.outvars[0].aval, [left, right])
    a, b = (_bits(Expression(builder, operand)) for operand in (left, right))
    combined = {"And": lambda: a * b, "Or": lambda: a.apply("Max", b), "Xor": lambda: (a - b).apply("Abs")}[op]()
    return _pack(combined, left.dtype)


@rule("not")
def complement(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds Not of a boolean; the complement of an integer is -1 - x, or the largest number minus x if unsigned."""
    if value.dtype == np.bool_:
        return builder.emit("Not", [value.name], value, value.layout)
    top = -1 if value.dtype.kind == "i" else np.iinfo(value.dtype).max
    return (top - Expression(builder, value).widen()).cast(value.dtype).tensor


@rule("shift_left", "shift_right_arithmetic", "shift_right_logical")
def shift(builder: Builder, eqn: Any, value: Value, count: Value) -> Tensor:
    """Multiplies with, or divides by, a power of two, rounding down; after the last bit only the sign is left."""
    # The largest power of two in int64 is 2^62.
    bits = np.iinfo(value.dtype).bits
    if bits == 64:
        short = isinstance(count, np.ndarray) and bool(np.all((count >= 0) & (count < 63)))
        require(short and eqn.primitive.name != "shift_right_logical", builder, eqn, f"these {value.dtype} operands")

    # In int64 all operands are exact. A logical shift reads the bits as unsigned; an arithmetic shift of an unsigned
    # integer takes its highest bit for the sign.
    x, distance = Expression(builder, value).cast(np.int64), Expression(builder, count).cast(np.int64)
    if eqn.primitive.name == "shift_right_logical":
        x = x % (1 << bits)
    elif value.dtype.kind == "u":
        x = (x + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)

    # Counts out of range shift everything out.
    distance = (distance < 0).where(np.asarray(bits, np.int64), distance.apply("Min", bits))
    factor = Expression(builder, np.asarray(2, np.int64)).apply("Pow", distance)
    moved = x * factor if eqn.primitive.name == "shift_left" else (x - x % factor) / factor
    return moved.cast(value.dtype).tensor


@rule("population_count")
def population_count(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Counts the bits that are set."""
    return _bits(Expression(builder, value)).reduce("ReduceSum", len(value.shape)).cast(value.dtype).tensor


@rule("clz")
def leading_zeros(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Counts the bits above the highest one that is set."""
    count = np.iinfo(value.dtype).bits
    highest = (_bits(Expression(builder, value)) * np.arange(1, count + 1)).reduce("ReduceMax", len(value.shape))
    return (count - highest).cast(value.dtype).tensor


def reduce_bits(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Reduces integers along axes by and, or, or xor, bit by bit."""
    bits = _bits(Expression(builder, value))
    for axis in sorted(eqn.params["axes"], reverse=True):
        bits = bits.reduce(_REDUCED[eqn.primitive.name], axis)
    # The sums of or and xor may be larger than 1, and ReduceMin over an empty axis is.
    one = bits % 2 if eqn.primitive.name == "reduce_xor" else bits.apply("Min", 1)
    return _pack(one, value.dtype)


def _bits(x: Expression) -> Expression:
    """Returns the bits as int64 zeros and ones along a new last axis, the lowest bit first."""
    count = np.iinfo(x.dtype).bits
    if count == 64:
        raise NotImplementedError(f"the bits of {x.dtype}")
    powers = 1 << np.arange(count, dtype=np.int64)
    unsigned = (x.cast(np.int64) % (1 << count)).reshape((*x.shape, 1))
    if isinstance(unsigned.value, np.ndarray):
        return Expression(x.builder, unsigned.value // powers % 2)
    return (unsigned / powers) % 2


def _pack(bits: Expression, dtype: np.dtype[Any]) -> Tensor:
    """Returns the integers whose bits are along the last axis."""
    powers = 1 << np.arange(np.iinfo(dtype).bits, dtype=np.int64)
    return (bits * powers).reduce("ReduceSum", len(bits.shape) - 1).cast(dtype).tensor
