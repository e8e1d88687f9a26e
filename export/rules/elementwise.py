"""Arithmetic, comparison, selection and conversion, element by element."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.rules.registry import RULES, Rule, common_layout, require, rule

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
_ARITHMETIC = {"add": "Add", "add_any": "Add", "div": "Div", "mul": "Mul", "pow": "Pow", "sub": "Sub"}
_COMPARISON = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}
_LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}
_WIDE = (np.dtype(np.float32), np.dtype(np.int32))
"""Where ONNX's arithmetic is jax's: narrow and unsigned integers are defined only in part."""


def emit(builder: Builder, op: str, like: Any, operands: Sequence[Value], **attributes: Any) -> Tensor:
    """Adds an operator that broadcasts, on operands of one rank or scalars."""
    rank = len(like.shape)
    layout = common_layout(*operands)
    carried = [
        any(isinstance(each, Tensor) and len(each.shape) == rank and each.shape[axis] == dim for each in operands)
        for axis, dim in enumerate(like.shape)
    ]
    inputs = []
    for each in operands:
        if isinstance(each, np.ndarray):
            each = _compact(each, carried) if each.ndim == rank else each
        inputs.append(builder.stored(each, layout if len(each.shape) == rank else ()))
    return builder.emit(op, inputs, like, layout, **attributes)


def _compact(array: np.ndarray, carried: Sequence[bool]) -> np.ndarray:
    """Keeps one element along the axes where all are equal and another operand has the size."""
    for axis, free in enumerate(carried):
        first = array.take([0], axis) if array.shape[axis] else array
        if free and np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return array.reshape(()) if array.size == 1 and all(carried) else array


def _apply(builder: Builder, op: str, value: Tensor) -> Tensor:
    return builder.emit(op, [value.name], value, value.layout)


def _unary(op: str) -> Rule:
    def translate(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
        require(value.dtype in _WIDE, builder, eqn, f"{value.dtype} operands")
        return _apply(builder, op, value)

    return translate


def _binary(op: str, dtypes: Sequence[np.dtype[Any]] | None) -> Rule:
    def translate(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
        require(dtypes is None or left.dtype in dtypes, builder, eqn, f"{left.dtype} operands")
        return emit(builder, op, eqn.outvars[0].aval, [left, right])

    return translate


RULES.update({primitive: _unary(op) for primitive, op in _UNARY.items()})
RULES.update({primitive: _binary(op, _WIDE) for primitive, op in _ARITHMETIC.items()})
RULES.update({primitive: _binary(op, None) for primitive, op in _COMPARISON.items()})
RULES.update({primitive: _binary(op, [np.dtype(np.bool_)]) for primitive, op in _LOGIC.items()})


@rule("copy", "copy_p", "stop_gradient")
def same(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Primitives that change nothing in the forward pass."""
    return value


@rule("ne")
def not_equal(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """ONNX has only Equal."""
    equal = emit(builder, "Equal", eqn.outvars[0].aval, [left, right])
    return _apply(builder, "Not", equal)


@rule("not")
def logical_not(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Of booleans; the bits of integers have no operator in this operator set."""
    require(value.dtype == np.bool_, builder, eqn, f"{value.dtype} operands")
    return _apply(builder, "Not", value)


@rule("max", "min")
def extremum(builder: Builder, eqn: Any, left: Value, right: Value) -> Tensor:
    """Recognises the rectifier, and the bound at infinity that jax's softmax and max pooling start from."""
    op, unbounded = ("Max", -np.inf) if eqn.primitive.name == "max" else ("Min", np.inf)
    for value, bound in ((left, right), (right, left)):
        if isinstance(value, Tensor) and isinstance(bound, np.ndarray) and value.shape == eqn.outvars[0].aval.shape:
            if np.all(bound == unbounded):
                return value
            if op == "Max" and value.dtype == np.float32 and np.all(bound == 0):
                return _apply(builder, "Relu", value)
    return emit(builder, op, eqn.outvars[0].aval, [left, right])


@rule("clamp")
def clamp(builder: Builder, eqn: Any, low: Value, value: Value, high: Value) -> Tensor:
    """As Clip where the bounds are constant scalars, such as in relu6."""
    like = eqn.outvars[0].aval
    if isinstance(value, Tensor) and all(isinstance(each, np.ndarray) and each.ndim == 0 for each in (low, high)):
        inputs = [value.name, builder.stored(low, ()), builder.stored(high, ())]
        return builder.emit("Clip", inputs, like, value.layout)
    return emit(builder, "Min", like, [emit(builder, "Max", like, [value, low]), high])


@rule("select_n")
def select(builder: Builder, eqn: Any, predicate: Value, *cases: Value) -> Tensor:
    """Where: case 1 where the predicate is true, case 0 elsewhere."""
    require(predicate.dtype == np.bool_ and len(cases) == 2, builder, eqn, "an integer predicate")
    return emit(builder, "Where", eqn.outvars[0].aval, [predicate, cases[1], cases[0]])


@rule("convert_element_type")
def convert(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Cast; a float becomes an integer only where both round towards zero and the range is wide."""
    dtype = np.dtype(eqn.params["new_dtype"])
    narrowing = value.dtype.kind == "f" and dtype.kind in "iu" and dtype != np.int32
    require(not narrowing, builder, eqn, f"{value.dtype} to {dtype}")
    return builder.cast(value, dtype)


@rule("square")
def square(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """One multiplication."""
    require(value.dtype in _WIDE, builder, eqn, f"{value.dtype} operands")
    return builder.emit("Mul", [value.name, value.name], value, value.layout)


@rule("integer_pow")
def integer_pow(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Pow, but for the square."""
    exponent = eqn.params["y"]
    if exponent == 2:
        return square(builder, eqn, value)
    require(value.dtype == np.float32, builder, eqn, f"{value.dtype} operands")
    return emit(builder, "Pow", value, [value, np.asarray(exponent, np.float32)])


@rule("rsqrt")
def rsqrt(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """The reciprocal of the square root."""
    return _apply(builder, "Reciprocal", _apply(builder, "Sqrt", value))


@rule("exp2", "expm1", "log1p")
def shifted(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Exact to 1e-7 in absolute terms; ONNX has no operator that keeps tiny results exact in relative terms."""
    one = np.asarray(1, np.float32)
    if eqn.primitive.name == "exp2":
        return emit(builder, "Pow", value, [np.asarray(2, np.float32), value])
    if eqn.primitive.name == "log1p":
        return _apply(builder, "Log", emit(builder, "Add", value, [value, one]))
    return emit(builder, "Sub", value, [_apply(builder, "Exp", value), one])


@rule("erfc")
def erfc(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Exact to 1e-7 in absolute terms."""
    return emit(builder, "Sub", value, [np.asarray(1, np.float32), _apply(builder, "Erf", value)])


@rule("is_finite")
def is_finite(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Neither infinite nor not a number: below infinity in absolute value."""
    return emit(builder, "Less", eqn.outvars[0].aval, [_apply(builder, "Abs", value), np.asarray(np.inf, np.float32)])


@rule("round")
def rounding(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Halves to even, the only way ONNX knows."""
    require(int(eqn.params["rounding_method"]) == 1, builder, eqn, "halves rounded away from zero")
    return _apply(builder, "Round", value)


def scale(builder: Builder, value: Tensor, factor: float) -> Tensor:
    """Times a constant; folding joins it with its neighbours."""
    return emit(builder, "Mul", value, [value, np.asarray(factor, np.float32)])
