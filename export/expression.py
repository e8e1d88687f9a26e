"""Python's operators on values of the graph, to write primitives that need several ONNX operators as formulas."""

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
    "IsNaN": np.isnan,
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
"""NumPy's equivalents, to evaluate operators of constants during the export; other operators always become nodes."""

_WIDER = {"int8": "int32", "uint8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}
_HALF = 1 << 31
"""Half of the numbers of uint32."""


def wide_dtype(dtype: Any) -> np.dtype[Any]:
    """Returns a type that runtimes compute in and that holds all values of `dtype`.

    ONNX defines no arithmetic of narrow integers. Casting the result back wraps around, as JAX does.
    """
    name = np.dtype(dtype).name
    wide: np.dtype[Any] = np.dtype(_WIDER.get(name, name))
    return wide


def number_dtype(dtype: Any) -> np.dtype[Any]:
    """Returns `wide_dtype(dtype)`, or int32 for booleans, as 0 and 1."""
    return np.dtype(np.int32) if np.dtype(dtype) == np.bool_ else wide_dtype(dtype)


def limits(dtype: Any) -> tuple[Any, Any]:
    """Returns the smallest and the largest value of a type, infinities included."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return -np.inf, np.inf
    return (False, True) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)


@dataclass(frozen=True, eq=False)
class Expression:
    """A value whose Python operators add nodes to the graph.

    Operands broadcast. Python numbers take the value's type.
    """

    builder: Builder
    value: Value

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(self.value.dtype)

    @property
    def shape(self) -> Shape:
        """Shape in JAX's order of axes."""
        return self.value.shape

    @property
    def tensor(self) -> Tensor:
        """The value as a tensor of the graph."""
        return self.builder.as_tensor(self.value)

    def apply(self, op: str, *others: Expression | Value | float, **attributes: Any) -> Expression:
        """Applies an ONNX operator; comparisons give booleans, other operators keep this value's type."""
        operands = [self.value, *(self.operand(other) for other in others)]
        boolean = op.startswith(("Less", "Greater", "Equal", "IsNaN", "IsInf"))
        return Expression(
            self.builder, combine(self.builder, op, operands, np.bool_ if boolean else None, **attributes)
        )

    def operand(self, other: Expression | Value | float) -> Value:
        """Returns another operand as a value; a Python number gets this value's type."""
        if isinstance(other, Expression):
            return other.value
        return other if isinstance(other, Tensor) else np.asarray(other, self.dtype)

    def cast(self, dtype: Any) -> Expression:
        """Converts the elements to another type."""
        return Expression(self.builder, self.builder.cast(self.value, dtype))

    def widen(self) -> Expression:
        """Converts the elements to a type that runtimes compute in."""
        return self.cast(wide_dtype(self.dtype))

    def where(self, yes: Expression | Value, no: Expression | Value | float) -> Expression:
        """Selects `yes` where this boolean value is true, else `no`."""
        case = yes if isinstance(yes, Expression) else Expression(self.builder, yes)
        operands = [self.value, case.value, case.operand(no)]
        return Expression(self.builder, combine(self.builder, "Where", operands, case.dtype))

    def reshape(self, shape: Shape) -> Expression:
        """Reshapes the value."""
        if isinstance(self.value, np.ndarray) and all(isinstance(dim, int) for dim in shape):
            return Expression(self.builder, self.value.reshape(shape))
        return Expression(self.builder, self.builder.reshape(self.tensor, shape))

    def reduce(self, op: str, axis: int) -> Expression:
        """Reduces one axis and drops it."""
        value = self.tensor
        position = value.layout.index(axis)
        layout = tuple(kept - (kept > axis) for kept in value.layout if kept != axis)
        like = Tensor("", tuple(dim for i, dim in enumerate(value.shape) if i != axis), value.dtype, ())
        # Operator set 17 takes the axes of ReduceSum as an input, and the axes of all other reductions as an attribute.
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


def ordered(x: Expression) -> Expression:
    """Converts to a type in which runtimes find extrema, without changing the order; `from_ordered` converts back.

    That of uint32 is int32, minus 2^31: in Max, Min and their reductions, onnxruntime 1.27 compares 32 of 64 bits.
    """
    if x.dtype == np.uint32:
        return (x.cast(np.int64) - _HALF).cast(np.int32)
    return x.cast(number_dtype(x.dtype))


def from_ordered(x: Expression, dtype: Any) -> Expression:
    """Converts what `ordered` returned back to the type that it was given."""
    return ((x.cast(np.int64) + _HALF) if dtype == np.uint32 else x).cast(dtype)


def combine(builder: Builder, op: str, operands: Sequence[Value], dtype: Any = None, **attributes: Any) -> Value:
    """Applies an operator to operands that broadcast; evaluates it during the export if all are arrays.

    Args:
      op: the ONNX operator.
      operands: values of any ranks.
      dtype: element type of the result; by default that of the first operand.
      attributes: the operator's attributes.
    """
    if op in _NUMPY and all(isinstance(operand, np.ndarray) for operand in operands):
        return np.asarray(_NUMPY[op](*operands))
    shape = _broadcast([operand.shape for operand in operands])
    like = Tensor("", shape, np.dtype(dtype or operands[0].dtype), ())
    return emit(builder, op, like, [_with_rank(builder, operand, len(shape)) for operand in operands], **attributes)


def emit(builder: Builder, op: str, like: Any, operands: Sequence[Value], **attributes: Any) -> Tensor:
    """Adds an operator that broadcasts, in the layout of its operands, and returns its value.

    Args:
      op: the ONNX operator.
      like: an aval or a Tensor with the shape and dtype of the result.
      operands: values of the rank of `like`, or scalars.
      attributes: the operator's attributes.
    """
    rank = len(like.shape)
    layout = common_layout(*operands)
    # The axes along which some tensor already has the size of the result: constants need not repeat along them.
    covered = [
        any(
            isinstance(operand, Tensor) and len(operand.shape) == rank and operand.shape[axis] == dim
            for operand in operands
        )
        for axis, dim in enumerate(like.shape)
    ]
    inputs = []
    for operand in operands:
        if isinstance(operand, np.ndarray) and operand.ndim == rank:
            inputs.append(builder.constant(_compact(operand, covered, layout)))
        else:
            inputs.append(builder.in_layout(operand, layout if len(operand.shape) == rank else ()))
    return builder.emit(op, inputs, like, layout, **attributes)


def common_layout(*operands: Value) -> Layout:
    """Returns the layout of the first tensor that is not stored in JAX's order, to save transposes."""
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    rank = max(len(operand.shape) for operand in operands)
    default = identity(rank)
    layouts = (tensor.layout for tensor in tensors if len(tensor.shape) == rank)
    return next((layout for layout in layouts if layout != default), default)


def _compact(array: np.ndarray, covered: Sequence[bool], layout: Layout) -> np.ndarray:
    """Returns a constant in a layout, with size 1 along each covered axis where all its elements are equal.

    Leading axes of size 1 are dropped; operands broadcast without them.
    """
    for axis, is_covered in enumerate(covered):
        first = array.take([0], axis) if array.shape[axis] else array
        # Compare bytes: 0 and -0 are equal, but their reciprocals are not.
        if is_covered and np.broadcast_to(first, array.shape).tobytes() == array.tobytes():
            array = first
    stored, droppable = array.transpose(layout), [covered[axis] for axis in layout]
    # A leading axis may go if another operand still has its size, be it 1.
    while stored.ndim and stored.shape[0] == 1 and droppable[0]:
        stored, droppable = stored[0], droppable[1:]
    return stored


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((dim for dim in column if not isinstance(dim, int) or dim != 1), 1) for column in columns)


def _with_rank(builder: Builder, value: Value, rank: int) -> Value:
    """Adds leading axes of size 1; scalars broadcast as they are."""
    if len(value.shape) in (0, rank):
        return value
    return Expression(builder, value).reshape((1,) * (rank - len(value.shape)) + tuple(value.shape)).value
