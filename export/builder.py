"""What the rules build with: tensors whose axes are stored in any order, and the few operators they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from onnx import helper

from export.errors import UnsupportedError
from export.graph import Graph, Shape, exported_dtype
from export.symbolic_dims import SymbolicDims

Layout = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A value of the traced function that the ONNX graph computes.

    Its axes are stored in the order `layout`: axis i of the ONNX value is axis `layout[i]` of jax's. So transposing
    costs nothing until an operator needs an order, and a network stays channels-first after its first convolution.
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
"""An operand of a rule: computed by the graph, or known at export."""


class Builder:
    """Adds nodes to a graph at a place of the module tree.

    Attributes:
      path: the place, empty or ending with a slash; node names start with it.
      call: translates a jaxpr that an equation contains, `call(closed_jaxpr, operands)`, and returns its values.
    """

    def __init__(self, graph: Graph, call: Callable[[Any, Sequence[Value]], list[Value]]):
        self.graph = graph
        self.path = ""
        self.call = call
        self._arranged: dict[tuple[str, Layout], str] = {}
        self._symbols = SymbolicDims(graph)

    def emit(
        self, op: str, inputs: Sequence[str], like: Any, layout: Layout | None = None, **attributes: Any
    ) -> Tensor:
        """Adds a node whose value has the shape and dtype of `like` (an aval or a Tensor), stored in `layout`."""
        layout = identity(len(like.shape)) if layout is None else tuple(layout)
        shape = tuple(like.shape[axis] for axis in layout)
        name = self.graph.add(op, inputs, shape=shape, path=self.path, **attributes)
        return Tensor(name, tuple(like.shape), exported_dtype(like.dtype), layout)

    def constant(self, array: Any, name: str = "constant") -> str:
        """Adds an array and returns its name."""
        return self.graph.add_constant(np.asarray(array), self.path + name)

    def stored(self, value: Value, order: Layout, name: str = "constant") -> str:
        """The name of a value whose axes are in this order; transposed at export, or by the graph if need be."""
        order = tuple(order)
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(order), name)
        if value.layout == order:
            return value.name
        if (value.name, order) not in self._arranged:
            self._arranged[value.name, order] = self._arrange(value, order)
        return self._arranged[value.name, order]

    def _arrange(self, value: Tensor, order: Layout) -> str:
        shape = tuple(value.shape[axis] for axis in order)
        if [axis for axis in order if value.shape[axis] != 1] == [
            axis for axis in value.layout if value.shape[axis] != 1
        ]:
            return self._reshape(value.name, value.stored_shape, shape)  # only axes of size 1 move
        perm = [value.layout.index(axis) for axis in order]
        return self.graph.add("Transpose", [value.name], shape=shape, path=self.path, perm=perm)

    def reshape(self, value: Tensor, shape: Shape) -> Tensor:
        """Row-major reshape, as jax's."""
        shape = tuple(shape)
        if shape == value.shape:
            return value
        layout = _follow(value, shape)
        if layout is not None:
            stored = tuple(shape[axis] for axis in layout)
            return Tensor(self._reshape(value.name, value.stored_shape, stored), shape, value.dtype, layout)
        name = self.stored(value, identity(len(value.shape)))
        return Tensor(self._reshape(name, value.shape, shape), shape, value.dtype, identity(len(shape)))

    def _reshape(self, name: str, old: Shape, new: Shape) -> str:
        if old == new:
            return name
        free = [i for i, dim in enumerate(new) if not isinstance(dim, int)]
        if 0 in new:
            return self.graph.add("Reshape", [name, self.sizes(new)], shape=new, path=self.path, allowzero=1)
        if any(i >= len(old) or old[i] != new[i] for i in free[1:]):
            sizes = self.sizes(new)
        else:
            copied = [dim if isinstance(dim, int) else 0 for dim in new]  # 0 copies the size at its place
            if free:
                copied[free[0]] = -1
            sizes = self.constant(np.array(copied, np.int64), "shape")
        return self.graph.add("Reshape", [name, sizes], shape=new, path=self.path)

    def expand(self, value: Tensor, shape: Shape) -> Tensor:
        """Repeats a value along its axes of size 1."""
        if tuple(shape) == value.shape:
            return value
        stored = tuple(shape[axis] for axis in value.layout)
        # A 1 keeps the value's own size, which may be symbolic.
        sizes = [1 if old == new else new for old, new in zip(value.stored_shape, stored, strict=True)]
        inputs = [value.name, self.sizes(sizes)]
        name = self.graph.add("Expand", inputs, shape=stored, path=self.path)
        return Tensor(name, tuple(shape), value.dtype, value.layout)

    def sizes(self, sizes: Sequence[Any]) -> str:
        """A vector of sizes, the symbolic ones computed from those of the graph's inputs when it runs."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, np.int64), "shape")
        parts = [
            self.constant(np.array([size], np.int64), "shape") if isinstance(size, int) else self._measure(size)
            for size in sizes
        ]
        return (
            parts[0]
            if len(parts) == 1
            else self.graph.add("Concat", parts, shape=(len(sizes),), path=self.path, axis=0)
        )

    def size(self, size: Any) -> Value:
        """A size as a scalar of int64."""
        if isinstance(size, int):
            return np.asarray(size, np.int64)
        return self.reshape(Tensor(self._measure(size), (1,), np.dtype(np.int64), (0,)), ())

    def _measure(self, size: Any) -> str:
        name = self._symbols.measure(size)
        if name is None:
            raise UnsupportedError(f"{self.where()}: no input has the size {size}")
        return name

    @overload
    def cast(self, value: Tensor, dtype: Any) -> Tensor: ...
    @overload
    def cast(self, value: Value, dtype: Any) -> Value: ...
    def cast(self, value: Value, dtype: Any) -> Value:
        """Converts the elements."""
        dtype = np.dtype(dtype)
        if dtype == value.dtype:
            return value
        if isinstance(value, np.ndarray):
            return value.astype(dtype)
        like = replace(value, dtype=dtype)
        return self.emit("Cast", [value.name], like, value.layout, to=helper.np_dtype_to_tensor_dtype(dtype))

    def as_tensor(self, value: Value) -> Tensor:
        """A constant as a tensor of the graph."""
        if isinstance(value, Tensor):
            return value
        return Tensor(self.constant(value), value.shape, value.dtype, identity(value.ndim))

    def where(self) -> str:
        """The place in the module tree, for messages."""
        return self.path.removesuffix("/") or "the top of the function"


def identity(rank: int) -> Layout:
    """The layout that jax's own order is."""
    return tuple(range(rank))


def renumber(layout: Layout, numbers: dict[int, int]) -> Layout:
    """The layout after its axes got new numbers; those without one are gone."""
    return tuple(numbers[axis] for axis in layout if axis in numbers)


def _follow(value: Tensor, shape: Shape) -> Layout | None:
    """A layout for `shape` in which the elements stay where they are stored; None if there is none.

    Axes of size 1 may come and go, an axis may be split, and axes that are stored side by side may be merged.
    """
    old = [axis for axis, dim in enumerate(value.shape) if _is_wide(dim)]
    new = [axis for axis, dim in enumerate(shape) if _is_wide(dim)]
    groups = _match([value.shape[axis] for axis in old], [shape[axis] for axis in new])
    if groups is None or (len(new) == 3 and any(len(parts) > 1 for parts, _ in groups)):
        return None  # a sequence made of a map is stored as jax has it: products with its last axis are the faster ones
    stored = [axis for axis in value.layout if axis in old]
    order: list[int] = []
    for merged, _ in groups:
        start = stored.index(old[merged[0]])
        if stored[start : start + len(merged)] != [old[i] for i in merged]:
            return None
    first = {old[merged[0]]: [new[i] for i in split] for merged, split in groups}
    for axis in stored:
        order += first.get(axis, [])
    if order == new:
        return identity(len(shape))
    return (*order, *(axis for axis in range(len(shape)) if axis not in new))


def _is_wide(dim: Any) -> bool:
    return not isinstance(dim, int) or dim != 1


def _match(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[range, range]] | None:
    """The smallest runs of old and of new sizes with the same product; None if a symbolic size is in a longer run."""
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        start, other, left, right = i, j, old[i], new[j]
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
        groups.append((range(start, i), range(other, j)))
    return groups if (i, j) == (len(old), len(new)) else None
