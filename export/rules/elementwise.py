"""Arithmetic, comparison, selection and conversion, element by element."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression, emit, number_dtype, wide_dtype
from export.graph import exported_dtype
from export.rules.floats import narrow
from export.rules.registry import RULES, Rule, require, rule

_UNARY = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}
_ARITHMETIC = {"add": "Add", "add_any": "Add", "mul": "Mul", "sub": "Sub"}
_COMPARISON = {
    "eq": "Equal",
    "eq_to": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "le_to": "LessOrEqual",
    "lt": "Less",
    "lt_to": "Less",
}
_SELECTABLE = ("float32", "int32", "int64", "uint8")
"""Types that onnxruntime selects between."""


def _apply(builder: Builder, op: str, value: Tensor) -> Tensor:
    return builder.emit(op, [value.name], value, value.layout)


def _calculate(builder: Builder, op: str, like: Any, *operands: Value, **attributes: Any) -> Tensor:
    """Arithmetic in a type that runtimes can calculate in, cast back to the operands' own."""
    dtype = operands[0].dtype
    wide = Tensor("", tuple(like.shape), wide_dtype(dtype), ())
    result = emit(builder, op, wide, [builder.cast(each, wide.dtype) for each in operands], **attributes)
    return builder.cast(result, dtype)


def _unary(op: str) -> Rule:
    def translate(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
        return _calculate(builder, op, value, value)

    return translate


def _binary(op: str) -> Rule:
    def translate(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
        return _calculate(builder, op, eqn.outvars[0].aval, left, right)

    return translate


def _comparison(op: str) -> Rule:
    def translate(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
        dtype = number_dtype(left.dtype)
        return emit(builder, op, eqn.outvars[0].aval, [builder.cast(left, dtype), builder.cast(right, dtype)])

    return translate


RULES.update({primitive: _unary(op) for primitive, op in _UNARY.items()})
RULES.update({primitive: _binary(op) for primitive, op in _ARITHMETIC.items()})
RULES.update({primitive: _comparison(op) for primitive, op in _COMPARISON.items()})


@rule(
    "copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name", "optimization_barrier", "pvary",
    "reshard", "sharding_constraint", "stage", "stop_gradient", "with_memory_space_constraint",
)  # fmt: skip
def same(builder: Builder, eqn: Any, *values: Value) -> list[Value]:
    """Primitives that change no value in the forward pass."""
    return list(values)


@rule("ne")
def not_equal(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """ONNX has only Equal."""
    equal = _comparison("Equal")(builder, eqn, left, right)
    assert isinstance(equal, Tensor)
    return _apply(builder, "Not", equal)


@rule("div")
def quotient(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Of integers that towards zero; x / 0 is -1."""
    if left.dtype.kind == "f" or _divides_safely(builder, right):
        return _calculate(builder, "Div", eqn.outvars[0].aval, left, right)
    x, divisor = (Expression(builder, each).widen() for each in (left, right))
    whole = x / _safe(divisor)
    signed = divisor.apply("Equal", -1).where(-whole, whole)
    return divisor.apply("Equal", 0).where(np.asarray(-1, x.dtype), signed).cast(left.dtype).tensor


@rule("rem")
def remainder(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """The sign of the dividend, as C's; of an integer by 0 it is the dividend."""
    if left.dtype.kind == "f" or _divides_safely(builder, right):
        return _calculate(builder, "Mod", eqn.outvars[0].aval, left, right, fmod=1)
    x, divisor = (Expression(builder, each).widen() for each in (left, right))
    rest = x.apply("Mod", _safe(divisor), fmod=1)
    return divisor.apply("Equal", 0).where(x, rest).cast(left.dtype).tensor


def _divides_safely(builder: Builder, divisor: Value) -> bool:
    """Whether it is known to be neither 0, which ends the runtime's run, nor -1, which ends its process at -2^31."""
    if isinstance(divisor, Tensor):
        expansion = builder.graph.producer(divisor.name, "Expand")
        divisor = builder.graph.constants.get(divisor.name if expansion is None else expansion.inputs[0], np.zeros(1))
    return not np.isin(divisor, (0, -1)).any()


def _safe(divisor: Expression) -> Expression:
    """With 1 for 0 and -1."""
    return (divisor.apply("Equal", 0) | divisor.apply("Equal", -1)).where(np.asarray(1, divisor.dtype), divisor)


@rule("max", "min")
def extremum(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Recognises the rectifier, and the bound at infinity that jax's softmax and max pooling start from."""
    op, logic, unbounded = ("Max", "Or", -np.inf) if eqn.primitive.name == "max" else ("Min", "And", np.inf)
    like = eqn.outvars[0].aval
    if left.dtype == np.bool_:
        return emit(builder, logic, like, [left, right])
    for value, bound in ((left, right), (right, left)):
        if isinstance(value, Tensor) and isinstance(bound, np.ndarray) and value.shape == like.shape:
            if np.all(bound == unbounded):
                return value
            if op == "Max" and value.dtype == np.float32 and np.all(bound == 0):
                return _apply(builder, "Relu", value)
    return _calculate(builder, op, like, left, right)


@rule("clamp")
def clamp(builder: Builder, eqn: Any, low: Value, value: Value, high: Value) -> Tensor:
    """As Clip where the bounds are constant scalars, such as in relu6."""
    like = eqn.outvars[0].aval
    scalars = all(isinstance(each, np.ndarray) and each.ndim == 0 for each in (low, high))
    if isinstance(value, Tensor) and value.dtype == np.float32 and scalars:
        inputs = [value.name, builder.stored(low, ()), builder.stored(high, ())]
        return builder.emit("Clip", inputs, like, value.layout)
    return _calculate(builder, "Min", like, _calculate(builder, "Max", like, value, low), high)


@rule("select_n")
def select(builder: Builder, eqn: Any, which: Value, *cases: Value) -> Value:
    """The case of that number, element by element; of two, a boolean chooses."""
    like = eqn.outvars[0].aval
    if isinstance(which, np.ndarray) and which.size and np.all(which == which.flat[0]):
        return cases[int(which.flat[0])]
    result = cases[-1]
    for number in reversed(range(len(cases) - 1)):
        is_last = which if which.dtype == np.bool_ else (Expression(builder, which) > number).value
        result = _choose(builder, like, is_last, result, cases[number])
    return result


def _choose(builder: Builder, like: Any, predicate: Value, yes: Value, no: Value) -> Tensor:
    dtype = yes.dtype
    if dtype == np.bool_:
        chosen = Expression(builder, predicate)
        either = (chosen & Expression(builder, yes)) | (~chosen & Expression(builder, no))
        return builder.as_tensor(either.value)
    wide = dtype if dtype.name in _SELECTABLE else wide_dtype(dtype)
    operands = [predicate, builder.cast(yes, wide), builder.cast(no, wide)]
    result = emit(builder, "Where", Tensor("", tuple(like.shape), wide, ()), operands)
    return builder.cast(result, dtype)


@rule("convert_element_type")
def convert(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Cast; a float beyond an integer's range becomes its nearest, where ONNX leaves the result open."""
    dtype = exported_dtype(eqn.params["new_dtype"])
    if value.dtype.kind == "f" and np.dtype(eqn.params["new_dtype"]).itemsize == 1 and dtype.kind == "f":
        return narrow(builder, value, eqn.params["new_dtype"])
    if value.dtype.kind != "f" or dtype.kind not in "iu":
        return builder.cast(value, dtype)
    limits = np.iinfo(dtype)
    bounds = [builder.constant(np.array(each, value.dtype), "bound") for each in (limits.min, limits.max)]
    bounded = builder.emit("Clip", [value.name, *bounds], value, value.layout)
    if limits.bits < 32:
        return builder.cast(builder.cast(bounded, np.int32), dtype)
    # The largest integer is no float: the next larger one is, which 64 bits hold if it is that of 32.
    whole = Expression(builder, builder.cast(bounded, np.int64))
    if limits.bits == 64:
        return (Expression(builder, bounded) >= 2.0**63).where(np.asarray(limits.max), whole).tensor
    return builder.cast(whole.apply("Min", limits.max).tensor, dtype)


@rule("square")
def square(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """One multiplication."""
    return _calculate(builder, "Mul", value, value, value)


@rule("one_minus_square")
def one_minus_square(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """(1 + x) (1 - x)."""
    x = Expression(builder, value)
    return ((1 + x) * (1 - x)).tensor


@rule("integer_pow")
def integer_pow(builder: Builder, eqn: Any, value: Tensor) -> Value:
    """Pow, but for the square; integers by repeated squaring, which wraps as jax's do."""
    exponent = eqn.params["y"]
    if exponent == 2:
        return square(builder, eqn, value)
    if value.dtype.kind == "f":
        return emit(builder, "Pow", value, [value, np.asarray(exponent, value.dtype)])
    require(exponent >= 1, builder, eqn, f"an integer to the power of {exponent}")
    factor, result = Expression(builder, value).widen(), None
    while exponent:
        if exponent % 2:
            result = factor if result is None else result * factor
        factor, exponent = factor * factor, exponent // 2
    assert result is not None
    return result.cast(value.dtype).value


@rule("pow")
def power(builder: Builder, eqn: Any, base: Value, exponent: Value) -> Tensor:
    """Of floats; an integer exponent becomes one."""
    require(base.dtype.kind == "f", builder, eqn, f"{base.dtype} operands")
    return emit(builder, "Pow", eqn.outvars[0].aval, [base, builder.cast(exponent, base.dtype)])


@rule("rsqrt")
def rsqrt(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """The reciprocal of the square root."""
    return _apply(builder, "Reciprocal", _apply(builder, "Sqrt", value))


@rule("is_finite")
def is_finite(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Neither infinite nor not a number: below infinity in absolute value."""
    return emit(builder, "Less", eqn.outvars[0].aval, [_apply(builder, "Abs", value), np.asarray(np.inf, np.float32)])


@rule("round")
def rounding(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Halves to even as ONNX does, or away from zero."""
    if int(eqn.params["rounding_method"]) == 1:
        return _apply(builder, "Round", value)
    size = Expression(builder, value).apply("Abs")
    whole = size.apply("Floor")
    upward = (size - whole >= 0.5).cast(value.dtype)
    return (Expression(builder, value).apply("Sign") * (whole + upward)).tensor


def scale(builder: Builder, value: Tensor, factor: float) -> Tensor:
    """Times a constant; folding joins it with its neighbours."""
    return emit(builder, "Mul", value, [value, np.asarray(factor, np.float32)])
