"""Symbolic sizes, such as `2*batch + 1`, computed when the graph runs."""

import ast
from typing import Any

import numpy as np

from export.graph import Graph

_OPERATORS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Mod: "Mod", ast.Pow: "Pow"}
_FUNCTIONS = {"mod": "Mod", "max": "Max", "min": "Min"}


class SymbolicDims:
    """Adds nodes to a graph that compute symbolic sizes from the shapes of its inputs.

    Each size, and each part of one, is computed once. All values are int64 vectors with one element, the form that
    Concat joins to a shape.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._known: dict[str, str] = {}

    def measure(self, size: Any) -> str | None:
        """Returns the name of the value that holds a size, or None if the sizes of the inputs do not determine it."""
        # JAX gives no access to the terms of a symbolic dimension, but prints it as an expression of Python.
        try:
            return self._compute(ast.parse(str(size).replace("^", "**"), mode="eval").body)
        except KeyError:
            return None

    def _compute(self, expression: ast.expr) -> str:
        key = ast.dump(expression)
        if key not in self._known:
            self._known[key] = self._add(expression)
        return self._known[key]

    def _add(self, expression: ast.expr) -> str:
        match expression:
            case ast.Name(id=name):
                return self._read(name)
            case ast.Constant(value=int(value)):
                return self._graph.add_constant(np.array([value], np.int64), "size")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._emit("Neg", self._compute(operand))
            case ast.BinOp(left=left, op=operator, right=right):
                return self._emit(_OPERATORS[type(operator)], self._compute(left), self._compute(right))
            case ast.Call(func=ast.Name(id="floordiv"), args=[left, right]):
                return self._floor_divide(self._compute(left), self._compute(right))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return self._emit(_FUNCTIONS[name], *map(self._compute, arguments))
        raise KeyError(ast.dump(expression))

    def _read(self, symbol: str) -> str:
        """Reads the size from the first input that has it in its shape; KeyError if no input has."""
        for name, kind in self._graph.inputs.items():
            for axis, dim in enumerate(kind.shape):
                if str(dim) == symbol:
                    return self._graph.add("Shape", [name], shape=(1,), path="", start=axis, end=axis + 1)
        raise KeyError(symbol)

    def _floor_divide(self, left: str, right: str) -> str:
        """Adds a floor division: Div truncates toward zero, so the remainder, which Mod floors, is subtracted first."""
        multiple = self._emit("Sub", left, self._emit("Mod", left, right))
        return self._emit("Div", multiple, right)

    def _emit(self, op: str, *operands: str) -> str:
        return self._graph.add(op, operands, shape=(1,), path="")
