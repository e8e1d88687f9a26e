"""Floats of fewer bits, and the bits of floats, by arithmetic: narrow types are exported as the float32 they fit in."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression
from export.rules.registry import require, rule

_MANTISSA, _BIAS, _EXPONENTS = 23, 127, 255  # of float32


@rule("reduce_precision")
def reduce_precision(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Rounded to fewer bits of the mantissa, in the range of float32."""
    require(eqn.params["exponent_bits"] == 8, builder, eqn, "a smaller exponent")
    return _rounded(Expression(builder, value), eqn.params["mantissa_bits"], 1 - _BIAS).tensor


def narrow(builder: Builder, value: Tensor, dtype: Any) -> Tensor:
    """Rounded to the numbers that a float type of 8 bits has; what is larger than all is infinite, or no number."""
    limits: Any = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    x = Expression(builder, value)
    rounded = _rounded(x, limits.nmant, limits.minexp)
    beyond = rounded.apply("Abs") > float(limits.max)
    infinite = bool(np.isinf(np.asarray(np.inf, dtype).astype(np.float32)))
    return beyond.where(x.apply("Sign") * np.inf if infinite else x * np.nan, rounded).tensor


def _rounded(x: Expression, mantissa: int, lowest: int) -> Expression:
    """To the nearest multiple of the last bit, which is exact: all factors are powers of two."""
    power = _power_below(x.apply("Abs")).apply("Max", 2.0**lowest)
    quantum = power * 2.0**-mantissa
    return (x / quantum).apply("Round") * quantum


def _power_below(size: Expression) -> Expression:
    """The largest power of two up to a positive number; the logarithm may be off by one, comparing mends it."""
    normal = size.apply("Max", 2.0 ** (1 - _BIAS)).apply("Min", 2.0**_BIAS)
    exponent = (normal.apply("Log") * (1 / math.log(2))).apply("Floor")
    power = _exp2(exponent)
    power = (power > normal).where(power * 0.5, power)
    return (power * 2 <= normal).where(power * 2, power)


def _exp2(exponent: Expression) -> Expression:
    return Expression(exponent.builder, np.asarray(2, np.float32)).apply("Pow", exponent)


@rule("bitcast_convert_type")
def bitcast(builder: Builder, eqn: Any, value: Value) -> Value:
    """Between float32 and integers of 32 bits, integers of one width, and from bytes to exponents."""
    old, new = value.dtype, np.dtype(eqn.params["new_dtype"])
    x = Expression(builder, value)
    if old.kind in "iu" and new.kind in "iu" and old.itemsize == new.itemsize:
        return x.cast(new).value
    if old == np.float32 and new.kind in "iu" and new.itemsize == 4 and eqn.invars[0].aval.dtype == np.float32:
        return _to_bits(x).cast(new).value
    if old.kind in "iu" and old.itemsize == 4 and new == np.float32:
        return _from_bits(x).value
    require(old == np.uint8 and new.name == "float8_e8m0fnu", builder, eqn, f"{eqn.invars[0].aval.dtype} to {new}")
    return _exp2(x.cast(np.float32) - _BIAS).value


def _to_bits(x: Expression) -> Expression:
    """Sign, exponent and mantissa as one integer of 64 bits; the bits of what is no number are not kept."""
    size = x.apply("Abs")
    power = _power_below(size)
    fraction = (size / power - 1) * 2.0**_MANTISSA
    exponent = (power.apply("Log") * (1 / math.log(2))).apply("Round") + _BIAS
    normal = exponent.cast(np.int64) * (1 << _MANTISSA) + fraction.cast(np.int64)
    tiny = (size * 2.0**100 * 2.0**49).cast(np.int64)
    bits = (size < 2.0 ** (1 - _BIAS)).where(tiny, normal)
    bits = (size > float(np.finfo(np.float32).max)).where(np.asarray(_EXPONENTS << _MANTISSA, np.int64), bits)
    bits = x.apply("IsNaN").where(np.asarray(0x7FC00000, np.int64), bits)
    return bits + is_negative(x).cast(np.int64) * (1 << 31)


def is_negative(x: Expression) -> Expression:
    """The sign, of zero too: the reciprocal tells that, but not that of infinity."""
    return (x < 0) | (x.apply("Reciprocal") < 0)


def _from_bits(bits: Expression) -> Expression:
    whole = bits.cast(np.int64) % (1 << 32)
    mantissa = whole % (1 << _MANTISSA)
    exponent = ((whole - mantissa) / (1 << _MANTISSA)) % (1 << 8)
    fraction = mantissa.cast(np.float32) * 2.0**-_MANTISSA
    normal = (fraction + 1) * _exp2(exponent.cast(np.float32).apply("Min", _EXPONENTS - 1.0) - _BIAS)
    tiny = fraction * 2.0 ** (1 - _BIAS)
    special = (mantissa > 0).where(np.asarray(np.nan, np.float32), np.inf)
    size = exponent.apply("Equal", 0).where(tiny, exponent.apply("Equal", _EXPONENTS).where(special, normal))
    return (whole >= 1 << 31).where(-size, size)


@rule("scaled_matmul_wrapper")
def scaled_matmul(builder: Builder, eqn: Any, left: Value, right: Value, *scales: Value) -> Tensor:
    """A product of matrices [batch, rows, k], whose blocks along k have a scale each."""
    a, b = (_unscaled(builder, each, scale) for each, scale in zip((left, right), scales, strict=True))
    names = [builder.stored(a.value, (0, 1, 2)), builder.stored(b.value, (0, 2, 1))]
    return builder.emit("MatMul", names, eqn.outvars[0].aval)


def _unscaled(builder: Builder, matrix: Value, scales: Value) -> Expression:
    blocks = scales.shape[-1]
    parts = Expression(builder, matrix).reshape((*matrix.shape[:-1], blocks, matrix.shape[-1] // blocks))
    return (parts * Expression(builder, scales).reshape((*scales.shape, 1))).reshape(matrix.shape)
