"""Elementwise arithmetic, comparison, selection and conversion."""

from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression, emit, from_ordered, number_dtype, ordered, wide_dtype
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
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}
_ARITHMETIC = {"add": "Add", "add_any": "Add", "mul": "Mul", "sub": "Sub"}
_COMPARISON = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
}
_SELECTABLE = ("float32", "int32", "int64", "uint8")
"""Types that onnxruntime's Where accepts."""


def _apply(builder: Builder, op: str, value: Tensor) -> Tensor:
    return builder.emit(op, [value.name], value, value.layout)


def _calculate(builder: Builder, op: str, like: Any, *operands: Value, **attributes: Any) -> Tensor:
    """Adds an operator in a type that runtimes compute in, and casts the result back to the operands' type."""
    dtype = operands[0].dtype
    wide = Tensor("", tuple(like.shape), wide_dtype(dtype), ())
    result = emit(builder, op, wide, [builder.cast(operand, wide.dtype) for operand in operands], **attributes)
    return builder.cast(result, dtype)


def _extreme(builder: Builder, op: str, like: Any, *operands: Value) -> Tensor:
    """Adds Max or Min, in a type whose order runtimes know."""
    values = [ordered(Expression(builder, operand)).value for operand in operands]
    result = emit(builder, op, Tensor("", tuple(like.shape), values[0].dtype, ()), values)
    return from_ordered(Expression(builder, result), operands[0].dtype).tensor


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


# Primitives that are one operator with the same meaning.
RULES.update({primitive: _unary(op) for primitive, op in _UNARY.items()})
RULES.update({primitive: _binary(op) for primitive, op in _ARITHMETIC.items()})
RULES.update({primitive: _comparison(op) for primitive, op in _COMPARISON.items()})


@rule(
    "copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name", "optimization_barrier", "pvary",
    "reshard", "sharding_constraint", "stage", "stop_gradient", "with_memory_space_constraint",
)  # fmt: skip
def identity(builder: Builder, eqn: Any, *values: Value) -> list[Value]:
    """Passes values on: these primitives change nothing in the forward pass."""
    return list(values)


@rule("ne")
def not_equal(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Adds Equal and Not: ONNX has no operator for inequality."""
    equal = _comparison("Equal")(builder, eqn, left, right)
    assert isinstance(equal, Tensor)
    return _apply(builder, "Not", equal)


@rule("eq_to", "le_to", "lt_to")
def compare_in_order(builder: Builder, eqn: Any, left: Value, right: Value) -> Value:
    """Compares in the order of a sort, in which NaNs are equal to one another and larger than all numbers."""
    a, b = (Expression(builder, builder.cast(operand, number_dtype(operand.dtype))) for operand in (left, right))

    def at_most(x: Expression, y: Expression) -> Expression:
        return x <= y if x.dtype.kind != "f" else (x <= y) | y.apply("IsNaN")

    orders = {"le_to": lambda: at_most(a, b), "lt_to": lambda: ~at_most(b, a)}
    return orders.get(eqn.primitive.name, lambda: at_most(a, b) & at_most(b, a))().value


@rule("div")
def div(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Divides; integer division truncates toward zero, and x / 0 is -1.

    JAX defines integer division by zero, runtimes do not: onnxruntime stops with an error.
    """
    if left.dtype.kind == "f" or _divides_safely(builder, right):
        return _calculate(builder, "Div", eqn.outvars[0].aval, left, right)
    x, divisor = (Expression(builder, operand).widen() for operand in (left, right))
    whole = x / _safe(divisor)
    # -x instead of x / -1, which overflows at the lowest integer.
    signed = divisor.apply("Equal", -1).where(-whole, whole)
    return divisor.apply("Equal", 0).where(np.asarray(-1, x.dtype), signed).cast(left.dtype).tensor


@rule("rem")
def rem(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Computes the remainder with the sign of the dividend, as in C; of an integer by 0 it is the dividend."""
    safe = left.dtype.kind == "f" or _divides_safely(builder, right)
    if safe and left.dtype != np.int64:
        return _calculate(builder, "Mod", eqn.outvars[0].aval, left, right, fmod=1)
    x, divisor = (Expression(builder, operand).widen() for operand in (left, right))
    factor = divisor if safe else _safe(divisor)
    # onnxruntime computes this Mod in double precision, which does not hold all 64 bits.
    rest = x - x / factor * factor if left.dtype == np.int64 else x.apply("Mod", factor, fmod=1)
    return (rest if safe else divisor.apply("Equal", 0).where(x, rest)).cast(left.dtype).tensor


def _divides_safely(builder: Builder, divisor: Value) -> bool:
    """Returns whether an integer divisor is known to be neither 0 nor -1.

    In onnxruntime, x / 0 fails, and -2^31 / -1 overflows, which ends the process.
    """
    if isinstance(divisor, Tensor):
        expansion = builder.graph.producer(divisor.name, "Expand")
        divisor = builder.graph.constants.get(divisor.name if expansion is None else expansion.inputs[0], np.zeros(1))
    return not np.isin(divisor, (0, -1)).any()


def _safe(divisor: Expression) -> Expression:
    """Replaces 0 and -1 in a divisor by 1."""
    return (divisor.apply("Equal", 0) | divisor.apply("Equal", -1)).where(np.asarray(1, divisor.dtype), divisor)


@rule("max", "min")
def extremum(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Adds Max or Min, And or Or for booleans, Relu for max(x, 0), and nothing for a bound at infinity.

    Reductions in jax.nn.softmax and pooling start from such a bound.
    """
    op, logic, unbounded = ("Max", "Or", -np.inf) if eqn.primitive.name == "max" else ("Min", "And", np.inf)
    like = eqn.outvars[0].aval
    if left.dtype == np.bool_:
        return emit(builder, logic, like, [left, right])
    # A maximum with minus infinity is the value itself. Relu is what runtimes fuse into the layer before it.
    for value, bound in ((left, right), (right, left)):
        if isinstance(value, Tensor) and isinstance(bound, np.ndarray) and value.shape == like.shape:
            if np.all(bound == unbounded):
                return value
            if op == "Max" and value.dtype == np.float32 and np.all(bound == 0):
                return _apply(builder, "Relu", value)
    return _extreme(builder, op, like, left, right)


@rule("clamp")
def clamp(builder: Builder, eqn: Any, low: Value, value: Value, high: Value) -> Tensor:
    """Adds Clip if the bounds are constant scalars, as in relu6, else Max and Min, or Or and And for booleans."""
    like = eqn.outvars[0].aval
    if value.dtype == np.bool_:
        return emit(builder, "And", like, [emit(builder, "Or", like, [value, low]), high])
    scalars = all(isinstance(bound, np.ndarray) and bound.ndim == 0 for bound in (low, high))
    if isinstance(value, Tensor) and value.dtype == np.float32 and scalars:
        inputs = [value.name, builder.in_layout(low, ()), builder.in_layout(high, ())]
        return builder.emit("Clip", inputs, like, value.layout)
    return _extreme(builder, "Min", like, _extreme(builder, "Max", like, value, low), high)


@rule("select_n")
def select(builder: Builder, eqn: Any, which: Value, *cases: Value) -> Value:
    """Selects for each element the case with the number in `which`, an integer, or a boolean if there are two cases."""
    # A constant selector that is the same everywhere selects nothing at run time.
    like = eqn.outvars[0].aval
    if isinstance(which, np.ndarray) and which.size and np.all(which == which.flat[0]):
        return cases[int(np.clip(which.flat[0], 0, len(cases) - 1))]
    # One Where for each case, from the last to the first: this case, or what was selected among the later ones.
    result = cases[-1]
    for number in reversed(range(len(cases) - 1)):
        is_later = which if which.dtype == np.bool_ else (Expression(builder, which) > number).value
        result = _choose(builder, like, is_later, result, cases[number])
    return result


def _choose(builder: Builder, like: Any, predicate: Value, yes: Value, no: Value) -> Tensor:
    """Adds Where, in a type that onnxruntime has it for; booleans are selected by logic."""
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
    """Adds Cast; a float outside an integer type's range becomes the nearest integer: ONNX defines no result.

    Numbers of any type are rounded to the values of an 8-bit float type.
    """
    dtype = exported_dtype(eqn.params["new_dtype"])
    if dtype.kind == "f" and np.dtype(eqn.params["new_dtype"]).itemsize == 1:
        return narrow(builder, builder.cast(value, dtype), eqn.params["new_dtype"])
    if value.dtype.kind != "f" or dtype.kind not in "iu":
        return builder.cast(value, dtype)

    # Float to integer: clip to the range first, then cast, to 8 and 16 bits by way of int32.
    limits = np.iinfo(dtype)
    bounds = [builder.constant(np.array(limit, value.dtype), "bound") for limit in (limits.min, limits.max)]
    bounded = builder.emit("Clip", [value.name, *bounds], value, value.layout)
    if limits.bits < 32:
        return builder.cast(builder.cast(bounded, np.int32), dtype)

    # The largest integer of 32 or 64 bits is not a float32; the upper bound was rounded up by one. The elements that
    # reach it are replaced: the Min of onnxruntime 1.27 compares 32 of 64 bits.
    whole = Expression(builder, builder.cast(bounded, np.int64))
    whole = (Expression(builder, bounded) >= float(limits.max + 1)).where(np.asarray(limits.max, np.int64), whole)
    if limits.bits == 64:
        whole = Expression(builder, value).apply("IsNaN").where(np.asarray(0, np.int64), whole)
    return whole.cast(dtype).tensor


@rule("sign")
def sign(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds Sign; the sign of an unsigned integer is whether it is not 0."""
    if value.dtype.kind == "u":
        return builder.cast(builder.cast(value, np.bool_), value.dtype)
    return _calculate(builder, "Sign", value, value)


@rule("square")
def square(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Multiplies a value with itself."""
    return _calculate(builder, "Mul", value, value, value)


@rule("one_minus_square")
def one_minus_square(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes (1 + x) (1 - x), which keeps digits where x is near 1."""
    x = Expression(builder, value)
    return ((1 + x) * (1 - x)).tensor


@rule("integer_pow")
def integer_pow(builder: Builder, eqn: Any, value: Tensor) -> Value:
    """Adds Pow, or Mul for a square; integers are multiplied by repeated squaring, which wraps around as in JAX."""
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
    """Adds Pow of floats; an integer exponent is cast to float."""
    require(base.dtype.kind == "f", builder, eqn, f"{base.dtype} operands")
    return emit(builder, "Pow", eqn.outvars[0].aval, [base, builder.cast(exponent, base.dtype)])


@rule("rsqrt")
def rsqrt(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds Sqrt and Reciprocal."""
    return _apply(builder, "Reciprocal", _apply(builder, "Sqrt", value))


@rule("is_finite")
def is_finite(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Compares the absolute value with infinity, which is false for NaN too."""
    return emit(builder, "Less", eqn.outvars[0].aval, [_apply(builder, "Abs", value), np.asarray(np.inf, np.float32)])


@rule("round")
def round_(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds Round, which rounds halves to even; rounds halves away from zero by comparing with the floor."""
    if int(eqn.params["rounding_method"]) == 1:
        return _apply(builder, "Round", value)
    size = Expression(builder, value).apply("Abs")
    whole = size.apply("Floor")
    upward = (size - whole >= 0.5).cast(value.dtype)
    return (Expression(builder, value).apply("Sign") * (whole + upward)).tensor


def scale(builder: Builder, value: Tensor, factor: float) -> Tensor:
    """Multiplies with a constant, which the folding pass joins with other constants."""
    return emit(builder, "Mul", value, [value, np.asarray(factor, np.float32)])
