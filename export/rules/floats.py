"""Rounding to floats of fewer bits, and the bits of floats, by arithmetic.

ONNX has no bitcast, and values of narrow float types are exported in float32, in which all of them are exact.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression
from export.rules.registry import require, rule

# Bits of the mantissa, bias of the exponent, and largest exponent (of infinity and NaN) of float32.
_MANTISSA, _BIAS, _EXPONENTS = 23, 127, 255


@rule("reduce_precision")
def reduce_precision(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Rounds to fewer bits of the mantissa; the exponent must keep its 8 bits."""
    require(eqn.params["exponent_bits"] == 8, builder, eqn, "a smaller exponent")
    # Without a mantissa, the even one of two neighbours is that with the even exponent.
    require(eqn.params["mantissa_bits"] > 0, builder, eqn, "no mantissa")
    return _rounded(Expression(builder, value), eqn.params["mantissa_bits"], 1 - _BIAS).tensor


def narrow(builder: Builder, value: Tensor, dtype: Any) -> Tensor:
    """Rounds to the values of an 8-bit float type; beyond them the result is infinity or, if it has none, NaN."""
    limits: Any = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    x = Expression(builder, value)
    rounded = _rounded(x, limits.nmant, limits.minexp)
    beyond = rounded.apply("Abs") > float(limits.max)
    # `float8_e8m0fnu` has neither zero nor negative numbers.
    lowest = float(limits.min)
    if lowest > 0:
        rounded, beyond = rounded.apply("Max", lowest), beyond | ~(x > 0)
    infinite = bool(np.isinf(np.asarray(np.inf, dtype).astype(np.float32)))
    return beyond.where(x.apply("Sign") * np.inf if infinite else x * np.nan, rounded).tensor


def _rounded(x: Expression, mantissa: int, lowest: int) -> Expression:
    """Rounds to the nearest multiple of the last mantissa bit.

    The scaling is exact because all factors are powers of two; `lowest` is the exponent below which they are denormal.
    """
    power = _power_below(x.apply("Abs")).apply("Max", 2.0**lowest)
    quantum = power * 2.0**-mantissa
    return (x / quantum).apply("Round") * quantum


def _power_below(size: Expression) -> Expression:
    """Returns the largest power of two that is not larger than a positive number.

    The rounded logarithm may be off by one, which two comparisons correct.
    """
    normal = size.apply("Max", 2.0 ** (1 - _BIAS)).apply("Min", 2.0**_BIAS)
    exponent = (normal.apply("Log") * (1 / math.log(2))).apply("Floor")
    power = _exp2(exponent)
    power = (power > normal).where(power * 0.5, power)
    return (power * 2 <= normal).where(power * 2, power)


def _exp2(exponent: Expression) -> Expression:
    return Expression(exponent.builder, np.asarray(2, np.float32)).apply("Pow", exponent)


@rule("bitcast_convert_type")
def bitcast(builder: Builder, eqn: Any, value: Value) -> Value:
    """Reinterprets float32 as 32-bit integers and back, integers of one width, and bytes as exponents."""
    old, new = value.dtype, np.dtype(eqn.params["new_dtype"])
    x = Expression(builder, value)
    if old.kind in "iu" and new.kind in "iu" and old.itemsize == new.itemsize:
        return x.cast(new).value
    if old == np.float32 and new.kind in "iu" and new.itemsize == 4 and eqn.invars[0].aval.dtype == np.float32:
        return _to_bits(x).cast(new).value
    if old.kind in "iu" and old.itemsize == 4 and new == np.float32:
        return _from_bits(x).value
    # `float8_e8m0fnu`, the type of block scales, is an exponent and nothing else.
    require(old == np.uint8 and new.name == "float8_e8m0fnu", builder, eqn, f"{eqn.invars[0].aval.dtype} to {new}")
    return _exp2(x.cast(np.float32) - _BIAS).value


def _to_bits(x: Expression) -> Expression:
    """Returns sign, exponent and mantissa as one int64; every NaN becomes the same one."""
    # Normal numbers: divide by the power of two below to get the mantissa.
    size = x.apply("Abs")
    power = _power_below(size)
    fraction = (size / power - 1) * 2.0**_MANTISSA
    exponent = (power.apply("Log") * (1 / math.log(2))).apply("Round") + _BIAS
    normal = exponent.cast(np.int64) * (1 << _MANTISSA) + fraction.cast(np.int64)
    # Denormal numbers are multiples of 2^-149, and their multiple is their bits. Infinity and NaN have fixed bits.
    tiny = (size * 2.0**100 * 2.0**49).cast(np.int64)
    bits = (size < 2.0 ** (1 - _BIAS)).where(tiny, normal)
    bits = (size > float(np.finfo(np.float32).max)).where(np.asarray(_EXPONENTS << _MANTISSA, np.int64), bits)
    bits = x.apply("IsNaN").where(np.asarray(0x7FC00000, np.int64), bits)
    return bits + is_negative(x).cast(np.int64) * (1 << 31)


def is_negative(x: Expression) -> Expression:
    """Returns the sign bit. The reciprocal of negative zero is minus infinity; that of infinity has no sign left."""
    return (x < 0) | (x.apply("Reciprocal") < 0)


def _from_bits(bits: Expression) -> Expression:
    """Returns the float32 that 32-bit integers encode."""
    # Exponent and mantissa are split off by division: this operator set has no bitwise operators of integers.
    whole = bits.cast(np.int64) % (1 << 32)
    mantissa = whole % (1 << _MANTISSA)
    exponent = ((whole - mantissa) / (1 << _MANTISSA)) % (1 << 8)
    fraction = mantissa.cast(np.float32) * 2.0**-_MANTISSA
    normal = (fraction + 1) * _exp2(exponent.cast(np.float32).apply("Min", _EXPONENTS - 1.0) - _BIAS)
    tiny = fraction * 2.0 ** (1 - _BIAS)
    special = (mantissa > 0).where(np.asarray(np.nan, np.float32), np.inf)
    size = exponent.apply("Equal", 0).where(tiny, exponent.apply("Equal", _EXPONENTS).where(special, normal))
    return (whole >= 1 << 31).where(-size, size)
