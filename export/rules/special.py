"""Functions without an ONNX operator, by the formulas that XLA or numerical textbooks use."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression, emit
from export.rules.floats import is_negative
from export.rules.registry import rule


@rule("exp2")
def exp2(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes 2^x by Pow."""
    return emit(builder, "Pow", value, [np.asarray(2, np.float32), value])


@rule("log2")
def log2(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes log(x) / log(2)."""
    return (Expression(builder, value).apply("Log") * (1 / math.log(2))).tensor


@rule("expm1")
def expm1(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes tanh(x / 2) (exp(x) + 1), which is exact near zero, where exp(x) - 1 loses all digits."""
    x = Expression(builder, value)
    return ((x * 0.5).apply("Tanh") * (x.apply("Exp") + 1)).tensor


@rule("log1p")
def log1p(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes log(u) x / (u - 1) with u = 1 + x as rounded, which is exact near zero (Kahan)."""
    x = Expression(builder, value)
    u = x + 1
    rounding = x / (u - 1)
    # Not 0 / 0, nor infinity / infinity: NaN is not less than 2.
    exact = rounding.apply("Abs") < 2
    tiny = u.apply("Equal", 1)
    return tiny.where(x, u.apply("Log") * exact.where(rounding, 1)).tensor


_ERFC_MIDDLE = (
    0.5638259427386472, -0.2741127028184656, 0.3404879937665872, -0.4944515323274145, 0.6210004621745983,
    -0.5824733027278666, 0.3687424674597105, -0.1387039388740657, 0.02326819970068386,
)  # fmt: skip
_ERFC_TAIL = (
    0.5641895067754075, -0.2820767439740514, 0.4218463358204948, -1.0152652792027, 2.921019019210786,
    -7.495518717768503, 12.97719955372516, -10.47766399936249,
)  # fmt: skip


@rule("erfc")
def erfc(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes 1 - erf(x) near zero, else exp(-x^2) / |x| times a polynomial of 1 / x^2 (Cephes, as in XLA)."""
    x = Expression(builder, value)
    size, square = x.apply("Abs"), x * x
    polynomial = (size < 2).where(_horner(1 / square, _ERFC_MIDDLE), _horner(1 / square, _ERFC_TAIL))
    tail = (-square).apply("Exp") / size * polynomial
    near = 1 - x.apply("Erf")
    result = (size < 1).where(near, (x < 0).where(2 - tail, tail)).tensor
    # A pass replaces the result by this part where a small absolute error is enough, as in GELU.
    builder.graph.approximations[result.name] = near.tensor.name
    return result


@rule("cbrt")
def cbrt(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes the sign times the cube root of the absolute value: Pow of a negative base is NaN."""
    x = Expression(builder, value)
    return (x.apply("Sign") * x.apply("Abs").apply("Pow", 1 / 3)).tensor


@rule("atan2")
def atan2(builder: Builder, eqn: Any, y: Value, x: Value) -> Tensor:
    """Computes the arctangent in the first quadrant and moves it to the quadrant of the signs; zeros have signs too."""
    up, right = Expression(builder, y), Expression(builder, x)
    height, width = up.apply("Abs"), right.apply("Abs")
    # Equal sides, also 0 and 0 or two infinities, make 45 degrees, or 0 at the origin.
    same = height.apply("Equal", width)
    angle = same.where(height.apply("Sign"), height / width).apply("Atan")
    turned = is_negative(right).where(math.pi - angle, angle)
    sign = is_negative(up).where(np.asarray(-1, np.float32), 1)
    # Multiply instead of selecting: onnxruntime's Where makes zeros positive.
    return (turned * sign).tensor


_GILES_CENTRAL = (
    1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087, -4.39150654e-06, -3.5233877e-06,
    3.43273939e-07, 2.81022636e-08,
)  # fmt: skip
_GILES_TAIL = (
    2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844, 0.00134934322,
    0.000100950558, -0.000200214257,
)  # fmt: skip


@rule("erf_inv")
def erf_inv(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Evaluates polynomials of w = -log(1 - x^2) (Giles 2010, as in XLA)."""
    x = Expression(builder, value)
    w = -(((1 - x) * (1 + x)).apply("Log"))
    # Outside of [-1, 1], w is NaN, which old runtimes would lose in a maximum.
    is_central = w < 5
    central = _horner(w - 2.5, _GILES_CENTRAL)
    tail = _horner(is_central.where(np.asarray(5, np.float32), w).apply("Sqrt") - 3, _GILES_TAIL)
    inside = x * is_central.where(central, tail)
    edge = x.apply("Abs").apply("Equal", 1)
    return edge.where(x * np.inf, inside).tensor


_LANCZOS_G = 7.0
_LANCZOS = (
    676.520368121885098567009190444019, -1259.13921672240287047156078755283, 771.3234287776530788486528258894,
    -176.61502916214059906584551354, 12.507343278686904814458936853, -0.13857109526572011689554707,
    9.984369578019570859563e-6, 1.50563273514931155834e-7,
)  # fmt: skip
_LANCZOS_BASE = 0.99999999999980993227684700473478


@rule("lgamma")
def lgamma(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes the Lanczos approximation, reflected below one half, as in XLA."""
    x = Expression(builder, value)
    # Lanczos: log gamma(z + 1) is a sum of logarithms, of the series `total` among them.
    reflected = x < 0.5
    z = reflected.where(-x, x - 1)
    total = Expression(builder, np.asarray(_LANCZOS_BASE, np.float32))
    for i, coefficient in enumerate(_LANCZOS):
        total = total + coefficient / (z + (i + 1))
    t = z + (_LANCZOS_G + 0.5)
    log_t = (z / (_LANCZOS_G + 0.5)).apply("Add", 1).apply("Log") + math.log(_LANCZOS_G + 0.5)
    log_gamma = (z + 0.5 - t / log_t) * log_t + total.apply("Log") + 0.5 * math.log(2 * math.pi)

    # Reflection: log gamma(x) = log pi - log |sin(pi x)| - log gamma(1 - x), with x reduced to keep the sine exact.
    fraction = x.apply("Abs") - x.apply("Abs").apply("Floor")
    nearest = (fraction > 0.5).where(1 - fraction, fraction)
    sine = (nearest * math.pi).apply("Sin").apply("Log")
    # The largest float is less than the infinity that the sine makes of a pole.
    bounded = log_gamma.apply("Min", float(np.finfo(np.float32).max))
    finite = reflected.where(math.log(math.pi) - sine - bounded, log_gamma)
    return x.apply("IsInf").where(np.asarray(np.inf, np.float32), finite).tensor


@rule("digamma")
def digamma(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes the derivative of the Lanczos approximation, reflected below one half, as in XLA."""
    x = Expression(builder, value)
    reflected = x < 0.5
    z = reflected.where(-x, x - 1)
    numerator, denominator = (Expression(builder, np.asarray(start, np.float32)) for start in (0, _LANCZOS_BASE))
    for i, coefficient in enumerate(_LANCZOS):
        shifted = z + (i + 1)
        numerator = numerator - coefficient / (shifted * shifted)
        denominator = denominator + coefficient / shifted
    t = z + (_LANCZOS_G + 0.5)
    log_t = (z / (_LANCZOS_G + 0.5)).apply("Add", 1).apply("Log") + math.log(_LANCZOS_G + 0.5)
    direct = log_t + numerator / denominator - _LANCZOS_G / t

    # Reflection: digamma(x) = digamma(1 - x) - pi / tan(pi x); integers from zero down are poles.
    angle = (x + (x + 0.5).apply("Abs").apply("Floor")) * math.pi
    finite = reflected.where(direct - math.pi / angle.apply("Tan"), direct)
    pole = (x < 0) & x.apply("Equal", x.apply("Floor"))
    return pole.where(np.asarray(np.nan, np.float32), finite).tensor


@rule("polynomial")
def polynomial(builder: Builder, eqn: Any, value: Value, *coefficients: Value) -> Tensor:
    """Evaluates a polynomial by Horner's scheme; the constant term is the first coefficient."""
    return _horner(Expression(builder, value), coefficients).tensor


def _horner(x: Expression, coefficients: Sequence[Value | float]) -> Expression:
    *lower, result = (Expression(x.builder, x.operand(coefficient)) for coefficient in coefficients)
    for coefficient in reversed(lower):
        result = result * x + coefficient
    return result
