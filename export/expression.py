"""Arithmetic on values as it is written: for the primitives that take several of ONNX's operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.builder import Builder, Layout, Tensor, Value, identity
from export.graph import Shape

_NUMPY: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Equal": np.equal,
    "Exp": np.exp,
    "Floor": np.floor,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": np.mod,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": np.power,
    "Sub": np.subtract,
    "Where": np.where,
}
"""What operators compute of constants; those that are left out become nodes."""

_WIDER = {"int8": "int32", "uint8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}


def wide_dtype(dtype: Any) -> np.dtype[Any]:
    """A type that runtimes can calculate in and that holds all values of this one; casting back wraps as jax does."""
    name = np.dtype(dtype).name
    wide: np.dtype[Any] = np.dtype(_WIDER.get(name, name))
    return wide


def number_dtype(dtype: Any) -> np.dtype[Any]:
    """As `wide_dtype`, with 0 and 1 for booleans."""
    return np.dtype(np.int32) if np.dtype(dtype) == np.bool_ else wide_dtype(dtype)


@dataclass(frozen=True, eq=False)
class Expression:
    """A value with the operators of Python, which add nodes. Operands broadcast; numbers take its type."""

    builder: Builder
    value: Value

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return np.dtype(self.value.dtype)

    @property
    def shape(self) -> Shape:
        """Shape in jax's order of axes."""
        return self.value.shape

    @property
    def tensor(self) -> Tensor:
        """As a value of the graph."""
        return self.builder.as_tensor(self.value)

    def apply(self, op: str, *others: Expression | Value | float, **attributes: Any) -> Expression:
        """The operator's value; a comparison's is boolean, any other has this one's type."""
        operands = [self.value, *(self._operand(each) for each in others)]
        boolean = op.startswith(("Less", "Greater", "Equal", "IsNaN", "IsInf"))
        return Expression(
            self.builder, combine(self.builder, op, operands, np.bool_ if boolean else None, **attributes)
        )

    def _operand(self, other: Expression | Value | float) -> Value:
        if isinstance(other, Expression):
            return other.value
        return other if isinstance(other, Tensor) else np.asarray(other, self.dtype)

    def cast(self, dtype: Any) -> Expression:
        """The elements as another type."""
        return Expression(self.builder, self.builder.cast(self.value, dtype))

    def widen(self) -> Expression:
        """The elements as a type that runtimes can calculate in."""
        return self.cast(wide_dtype(self.dtype))

    def where(self, yes: Expression | Value, no: Expression | Value | float) -> Expression:
        """Of two values, the first where this one is true."""
        case = yes if isinstance(yes, Expression) else Expression(self.builder, yes)
        operands = [self.value, case.value, case._operand(no)]
        return Expression(self.builder, combine(self.builder, "Where", operands, case.dtype))

    def reshape(self, shape: Shape) -> Expression:
        """The elements in another shape."""
        if isinstance(self.value, np.ndarray) and all(isinstance(dim, int) for dim in shape):
            return Expression(self.builder, self.value.reshape(shape))
        return Expression(self.builder, self.builder.reshape(self.tensor, shape))

    def reduce(self, op: str, axis: int) -> Expression:
        """A reduction of one axis, which goes."""
        value = self.tensor
        position = value.layout.index(axis)
        layout = tuple(each - (each > axis) for each in value.layout if each != axis)
        like = Tensor("", tuple(dim for i, dim in enumerate(value.shape) if i != axis), value.dtype, ())
        if op == "ReduceSum":
            axes = self.builder.constant(np.array([position], np.int64), "axes")
            return Expression(self.builder, self.builder.emit(op, [value.name, axes], like, layout, keepdims=0))
        return Expression(self.builder, self.builder.emit(op, [value.name], like, layout, axes=[position], keepdims=0))

    def __add__(self, other: Expression | Value | float) -> Expression:
        return self.apply("Add", other)

    def __sub__(self, other: Expression | Value | float) -> Expression:
        return self.apply("Sub", other)

    def __mul__(self, other: Expression | Value | float) -> Expression:
        return self.apply("Mul", other)

    def __truediv__(self, other: Expression | Value | float) -> Expression:
        return self.apply("Div", other)

    def __mod__(self, other: Expression | Value | float) -> Expression:
        return self.apply("Mod", other, fmod=0)

    def __neg__(self) -> Expression:
        return self.apply("Neg")

    def __radd__(self, other: float) -> Expression:
        return self.apply("Add", other)

    def __rmul__(self, other: float) -> Expression:
        return self.apply("Mul", other)

    def __rsub__(self, other: float) -> Expression:
        return Expression(self.builder, np.asarray(other, self.dtype)).apply("Sub", self)

    def __rtruediv__(self, other: float) -> Expression:
        return Expression(self.builder, np.asarray(other, self.dtype)).apply("Div", self)

    def __lt__(self, other: Expression | Value | float) -> Expression:
        return self.apply("Less", other)

    def __le__(self, other: Expression | Value | float) -> Expression:
        return self.apply("LessOrEqual", other)

    def __gt__(self, other: Expression | Value | float) -> Expression:
        return self.apply("Greater", other)

    def __ge__(self, other: Expression | Value | float) -> Expression:
        return self.apply("GreaterOrEqual", other)

    def __and__(self, other: Expression) -> Expression:
        return self.apply("And", other)

    def __or__(self, other: Expression) -> Expression:
        return self.apply("Or", other)

    def __invert__(self) -> Expression:
        return self.apply("Not")


def combine(builder: Builder, op: str, operands: Sequence[Value], dtype: Any = None, **attributes: Any) -> Value:
    """An operator on operands that broadcast, computed now if all are known.

    Args:
      dtype: of the result; by default that of the first operand.
    """
    if op in _NUMPY and all(isinstance(each, np.ndarray) for each in operands):
        return np.asarray(_NUMPY[op](*operands))
    shape = _broadcast([each.shape for each in operands])
    like = Tensor("", shape, np.dtype(dtype or operands[0].dtype), ())
    return emit(builder, op, like, [_raise(builder, each, len(shape)) for each in operands], **attributes)


def emit(builder: Builder, op: str, like: Any, operands: Sequence[Value], **attributes: Any) -> Tensor:
    """Adds an operator that broadcasts, on operands of the rank of `like` or scalars."""
    rank = len(like.shape)
    layout = common_layout(*operands)
    carried = [
        any(isinstance(each, Tensor) and len(each.shape) == rank and each.shape[axis] == dim for each in operands)
        for axis, dim in enumerate(like.shape)
    ]
    inputs = []
    for each in operands:
        if isinstance(each, np.ndarray) and each.ndim == rank:
            inputs.append(builder.constant(_compact(each, carried, layout)))
        else:
            inputs.append(builder.stored(each, layout if len(each.shape) == rank else ()))
    return builder.emit(op, inputs, like, layout, **attributes)


def common_layout(*operands: Value) -> Layout:
    """A layout that saves the most transposing: that of the first tensor stored in another order than jax's."""
    tensors = [each for each in operands if isinstance(each, Tensor)]
    rank = max(len(each.shape) for each in operands)
    own = identity(rank)
    return next((each.layout for each in tensors if len(each.shape) == rank and each.layout != own), own)


def _compact(array: np.ndarray, carried: Sequence[bool], layout: Layout) -> np.ndarray:
    """A constant as it is stored, with one element along the axes where all are equal and another operand has the size.

    Such axes are left out in front, where operands broadcast without them.
    """
    for axis, free in enumerate(carried):
        first = array.take([0], axis) if array.shape[axis] else array
        if free and np.array_equal(np.broadcast_to(first, array.shape), array, equal_nan=array.dtype.kind == "f"):
            array = first
    stored, sizes = array.transpose(layout), [carried[axis] for axis in layout]
    while stored.ndim and stored.shape[0] == 1 and sizes[0]:
        stored, sizes = stored[0], sizes[1:]
    return stored


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((dim for dim in column if not isinstance(dim, int) or dim != 1), 1) for column in columns)


def _raise(builder: Builder, value: Value, rank: int) -> Value:
    """Axes of size 1 put before the others; scalars broadcast as they are."""
    if len(value.shape) in (0, rank):
        return value
    return Expression(builder, value).reshape((1,) * (rank - len(value.shape)) + tuple(value.shape)).value
