"""The interface that the rules build graphs with: tensors with a layout, and operators that every rule needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import jax.extend.core as jex
import numpy as np
from onnx import helper

from export.errors import UnsupportedError
from export.graph import Graph, Shape, exported_dtype
from export.symbolic_dims import SymbolicDims

Layout = tuple[int, ...]
"""The order in which axes are stored: axis i of the ONNX value is axis `layout[i]` of the JAX array."""


@dataclass(frozen=True)
class Tensor:
    """A value of the traced function that the ONNX graph computes.

    The layout makes a transpose free until an operator needs a certain order, so that a network stays channels-first
    after its first convolution although JAX describes it channels-last.

    Attributes:
      name: name of the value in the graph.
      shape: shape of the JAX array.
      dtype: element type in the graph.
      layout: the order in which the graph stores the axes.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    layout: Layout

    @property
    def stored_shape(self) -> Shape:
        """Shape of the ONNX value."""
        return tuple(self.shape[axis] for axis in self.layout)


Value = Tensor | np.ndarray
"""An operand of a rule: a tensor that the graph computes, or an array that is known during the export."""


class Builder:
    """Adds nodes to a graph at the current path of the module tree.

    Attributes:
      path: current path, empty or ending with a slash; node names start with it.
      call: translates a jaxpr that an equation contains, `call(closed_jaxpr, operands)`, and returns its values.
    """

    def __init__(self, graph: Graph, call: Callable[[Any, Sequence[Value]], list[Value]]):
        self.graph = graph
        self.path = ""
        self.call = call
        self._arranged: dict[tuple[str, Layout, Layout], str] = {}
        self._symbols = SymbolicDims(graph)

    def emit(
        self, op: str, inputs: Sequence[str], like: Any, layout: Layout | None = None, **attributes: Any
    ) -> Tensor:
        """Adds a node and returns its value.

        Args:
          op: the ONNX operator.
          inputs: names of its operands.
          like: an aval or a Tensor with the shape and dtype of the result.
          layout: the layout of the result; by default JAX's order of axes.
          attributes: the operator's attributes.
        """
        layout = identity(len(like.shape)) if layout is None else tuple(layout)
        shape = tuple(like.shape[axis] for axis in layout)
        name = self.graph.add(op, inputs, shape=shape, path=self.path, **attributes)
        return Tensor(name, tuple(like.shape), exported_dtype(like.dtype), layout)

    def constant(self, array: Any, name: str = "constant") -> str:
        """Adds an array and returns its name."""
        return self.graph.add_constant(np.asarray(array), self.path + name)

    def in_layout(self, value: Value, layout: Layout, name: str = "constant") -> str:
        """Returns the name of a value stored in a layout; adds the array (as `name`) or a transpose if needed."""
        layout = tuple(layout)
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(layout), name)
        if value.layout == layout:
            return value.name
        # Several arrays may be one stored value, as `x.T` is, each with its axes in another order.
        key = (value.name, value.layout, layout)
        if key not in self._arranged:
            self._arranged[key] = self._arrange(value, layout)
        return self._arranged[key]

    def _arrange(self, value: Tensor, layout: Layout) -> str:
        shape = tuple(value.shape[axis] for axis in layout)
        # If only axes of size 1 move, the elements stay where they are and a Reshape, which copies nothing, will do.
        if [axis for axis in layout if value.shape[axis] != 1] == [
            axis for axis in value.layout if value.shape[axis] != 1
        ]:
            return self._reshape(value.name, value.stored_shape, shape)
        perm = [value.layout.index(axis) for axis in layout]
        return self.graph.add("Transpose", [value.name], shape=shape, path=self.path, perm=perm)

    def reshape(self, value: Tensor, shape: Shape) -> Tensor:
        """Reshapes a value in row-major order of the JAX array."""
        shape = tuple(shape)
        if shape == value.shape:
            return value
        layout = _reshaped_layout(value, shape)
        if layout is not None:
            stored = tuple(shape[axis] for axis in layout)
            return Tensor(self._reshape(value.name, value.stored_shape, stored), shape, value.dtype, layout)
        name = self.in_layout(value, identity(len(value.shape)))
        return Tensor(self._reshape(name, value.shape, shape), shape, value.dtype, identity(len(shape)))

    def _reshape(self, name: str, old: Shape, new: Shape) -> str:
        """Reshapes a stored value, if possible to a constant shape, which runtimes optimize better."""
        if old == new:
            return name
        free = [i for i, dim in enumerate(new) if not isinstance(dim, int)]
        vanishing = [i for i, dim in enumerate(new) if not _is_positive(dim)]
        kept = all(i < len(old) and old[i] == new[i] for i in free[1:])
        if kept and vanishing in ([], free[:1]):
            # One symbolic size is inferred (-1); the others are where they were and can be copied (0).
            constant = [dim if isinstance(dim, int) else 0 for dim in new]
            if free:
                constant[free[0]] = -1
            sizes = self.constant(np.array(constant, np.int64), "shape")
            return self.graph.add("Reshape", [name, sizes], shape=new, path=self.path)
        # By default a computed size of 0 would copy the size of the operand's axis.
        attributes = {"allowzero": 1} if vanishing else {}
        return self.graph.add("Reshape", [name, self.sizes(new)], shape=new, path=self.path, **attributes)

    def expand(self, value: Tensor, shape: Shape) -> Tensor:
        """Repeats a value along its axes of size 1."""
        if tuple(shape) == value.shape:
            return value
        stored = tuple(shape[axis] for axis in value.layout)
        # Expand broadcasts: a 1 keeps the value's size, which may be symbolic.
        sizes = [1 if old == new else new for old, new in zip(value.stored_shape, stored, strict=True)]
        inputs = [value.name, self.sizes(sizes)]
        name = self.graph.add("Expand", inputs, shape=stored, path=self.path)
        return Tensor(name, tuple(shape), value.dtype, value.layout)

    def sizes(self, sizes: Sequence[Any]) -> str:
        """Returns the name of an int64 vector of sizes; the graph computes symbolic ones from its inputs' shapes."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, np.int64), "shape")
        parts = [
            self.constant(np.array([size], np.int64), "shape") if isinstance(size, int) else self._measure(size)
            for size in sizes
        ]
        if len(parts) == 1:
            return parts[0]
        return self.graph.add("Concat", parts, shape=(len(sizes),), path=self.path, axis=0)

    def size(self, size: Any) -> Value:
        """Returns a size as an int64 scalar."""
        if isinstance(size, int):
            return np.asarray(size, np.int64)
        return self.reshape(Tensor(self._measure(size), (1,), np.dtype(np.int64), (0,)), ())

    def _measure(self, size: Any) -> str:
        name = self._symbols.measure(size)
        if name is None:
            raise UnsupportedError(f"{self.where()}: no input has the size {size}; give the size as a number")
        return name

    @overload
    def cast(self, value: Tensor, dtype: Any) -> Tensor: ...
    @overload
    def cast(self, value: Value, dtype: Any) -> Value: ...
    def cast(self, value: Value, dtype: Any) -> Value:
        """Converts the elements to another type."""
        dtype = np.dtype(dtype)
        if dtype == value.dtype:
            return value
        if isinstance(value, np.ndarray):
            return value.astype(dtype)
        like = replace(value, dtype=dtype)
        return self.emit("Cast", [value.name], like, value.layout, to=helper.np_dtype_to_tensor_dtype(dtype))

    def as_tensor(self, value: Value) -> Tensor:
        """Returns a tensor as it is, and an array as a constant of the graph."""
        if isinstance(value, Tensor):
            return value
        return Tensor(self.constant(value), value.shape, value.dtype, identity(value.ndim))

    def where(self) -> str:
        """Returns the current path of the module tree, for error messages."""
        return self.path.removesuffix("/") or "the top of the function"


def identity(rank: int) -> Layout:
    """Returns the layout in which axes are stored in JAX's order."""
    return tuple(range(rank))


def renumber(layout: Layout, numbers: dict[int, int]) -> Layout:
    """Returns a layout after its axes got new numbers; axes without a new number are dropped."""
    return tuple(numbers[axis] for axis in layout if axis in numbers)


def _reshaped_layout(value: Tensor, shape: Shape) -> Layout | None:
    """Returns a layout for `shape` that leaves the stored elements where they are, or None if there is none.

    Axes of size 1 may come and go, an axis may be split, and axes that are stored side by side may be merged.
    """
    # Pair the axes before and after that have the same product of sizes. Axes of size 1 fit anywhere.
    old = [axis for axis, dim in enumerate(value.shape) if _is_wide(dim)]
    new = [axis for axis, dim in enumerate(shape) if _is_wide(dim)]
    groups = _match([value.shape[axis] for axis in old], [shape[axis] for axis in new])
    if groups is None:
        return None
    # A sequence made of a feature map (batch, height x width, channels) is better stored in JAX's order: attention
    # multiplies its last axis with matrices, which is fastest there.
    if len(new) == 3 and any(len(merged) > 1 for merged, _ in groups):
        return None

    # Merged axes must be neighbours in the order in which they are stored.
    stored = [axis for axis in value.layout if axis in old]
    for merged, _ in groups:
        start = stored.index(old[merged[0]])
        if stored[start : start + len(merged)] != [old[i] for i in merged]:
            return None

    # Each group stays where it is in the stored order.
    order: list[int] = []
    first = {old[merged[0]]: [new[i] for i in split] for merged, split in groups}
    for axis in stored:
        order += first.get(axis, [])
    if order == new:
        return identity(len(shape))
    return (*order, *(axis for axis in range(len(shape)) if axis not in new))


def _is_positive(dim: Any) -> bool:
    """Returns whether a size is never 0, as `batch - 1` may be."""
    try:
        return bool(dim > 0)
    except jex.InconclusiveDimensionOperation:
        return False


def _is_wide(dim: Any) -> bool:
    return not isinstance(dim, int) or dim != 1


def _match(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[range, range]] | None:
    """Splits old and new sizes into the smallest runs with equal products, as pairs of ranges.

    Returns None if the products differ, or if a run of more than one size would contain a symbolic size.
    """
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        # Lengthen the run with the smaller product until both are equal.
        old_start, new_start, left, right = i, j, old[i], new[j]
        while not (isinstance(left, int) == isinstance(right, int) and left == right):
            if not (isinstance(left, int) and isinstance(right, int)):
                return None
            if left < right:
                i += 1
            else:
                j += 1
            if i == len(old) or j == len(new):
                return None
            left, right = (left * old[i], right) if left < right else (left, right * new[j])
        i, j = i + 1, j + 1
        groups.append((range(old_start, i), range(new_start, j)))
    return groups if (i, j) == (len(old), len(new)) else None
