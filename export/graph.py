"""An ONNX graph under construction: nodes, constants and shapes by name, and what rewriting them needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17
"""The newest operator set that every runtime we aim at reads; newer ones move axes from attributes to inputs."""
IR_VERSION = 8

Dim = Any
"""A size: an int, or jax's symbolic dimension."""
Shape = tuple[Dim, ...]

_NARROW = ("bfloat16", "float16", "float8_")


def exported_dtype(dtype: Any) -> np.dtype[Any]:
    """The element type that a type of jax's becomes: floats narrower than float32 become that, which all runtimes know.

    Half precision is so computed more precisely than in jax; to 8 bits values are still rounded.
    """
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype.name.startswith(_NARROW) else dtype


@dataclass(frozen=True)
class ValueType:
    """Element type and shape of an input or output of the graph."""

    dtype: np.dtype[Any]
    shape: Shape


@dataclass
class Node:
    """One operator with one output.

    Attributes:
      inputs: names of values; empty for an operand that the operator does without.
      path: place in the module tree, such as `ResNet/Block_2/Conv_1/`; empty at the top.
      position: which of the operator's outputs it is; those before it are computed and not read.
    """

    op: str
    inputs: list[str]
    output: str
    path: str
    attributes: dict[str, Any] = field(default_factory=dict)
    position: int = 0


class Graph:
    """Nodes in any order, each computing one named value of a known shape.

    Attributes:
      inputs: type of each input.
      outputs: for each public output, the name of the value it is, and its type.
      nodes: by the name of the value they compute.
      constants: arrays by name.
      shapes: of all values, constants included.
      rough: for values that are exact in relative terms, a cheaper one that is within 1e-7 in absolute terms.
      origins: for values that the traced function has too, which one, as whoever fills in the graph numbers them.
      node_names: of the model that was made last, the node that computes each value.
    """

    def __init__(self, inputs: dict[str, ValueType]):
        self.inputs = inputs
        self.outputs: dict[str, tuple[str, ValueType]] = {}
        self.nodes: dict[str, Node] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {name: kind.shape for name, kind in inputs.items()}
        self.rough: dict[str, str] = {}
        self.origins: dict[str, Any] = {}
        self.node_names: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._count = 0

    def add(
        self, op: str, inputs: Sequence[str], *, shape: Shape, path: str, position: int = 0, **attributes: Any
    ) -> str:
        """Adds a node below `path` and returns the name of its value."""
        name = self._new_name(path + op)
        self.nodes[name] = Node(op, list(inputs), name, path, attributes, position)
        self.shapes[name] = shape
        return name

    def add_constant(self, array: np.ndarray, label: str) -> str:
        """Adds an array and returns its name; the label is what the model will call it, if need be with a number."""
        name = self._new_name(label)
        self._labels[name] = label
        self.set_constant(name, array)
        return name

    def set_constant(self, name: str, array: np.ndarray) -> None:
        """Changes an array, for all who read it."""
        self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)  # the former makes scalars 1-d
        self.shapes[name] = array.shape

    def producer(self, name: str, *ops: str) -> Node | None:
        """The node that computes a value, if it is one of these operators (or any, if none is given)."""
        node = self.nodes.get(name)
        return node if node is not None and (not ops or node.op in ops) else None

    def own_constant(self, node: Node, position: int) -> np.ndarray | None:
        """An operand of a node, if it is a constant that nothing else reads."""
        name = node.inputs[position]
        return self.constants[name] if name in self.constants and self.only_consumer(name) is node else None

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element, else None."""
        array = self.constants.get(name)
        return float(array.item()) if array is not None and array.size == 1 else None

    def consumers(self, name: str) -> list[Node | None]:
        """The nodes that read a value, once per reading; None stands for an output of the graph."""
        nodes: list[Node | None] = [node for node in self.nodes.values() for each in node.inputs if each == name]
        return nodes + [None for value, _ in self.outputs.values() if value == name]

    def only_consumer(self, name: str) -> Node | None:
        """The node that alone reads a value; None if there are more readers, or the value is an output."""
        nodes = self.consumers(name)
        return nodes[0] if len(nodes) == 1 else None

    def replace(self, old: str, new: str) -> None:
        """Makes every reader of one value read another of the same shape, which from now on is that value."""
        if old in self.origins:
            self.origins[new] = self.origins.pop(old)
        else:
            self.origins.pop(new, None)
        for node in self.nodes.values():
            node.inputs = [new if each == old else each for each in node.inputs]
        self.outputs = {key: (new if name == old else name, kind) for key, (name, kind) in self.outputs.items()}

    def sorted_nodes(self) -> list[Node]:
        """The nodes that the outputs need, each after those it reads."""
        needed: dict[str, list[str]] = {}
        pending = [name for name, _ in self.outputs.values()]
        while pending:
            node = self.nodes.get(pending.pop())
            if node is not None and node.output not in needed:
                needed[node.output] = [each for each in node.inputs if each in self.nodes]
                pending += node.inputs
        return [self.nodes[name] for name in TopologicalSorter(needed).static_order()]

    def prune(self) -> None:
        """Drops the nodes and constants that no output needs."""
        self.nodes = {node.output: node for node in self.sorted_nodes()}
        read = {name for node in self.nodes.values() for name in node.inputs}
        read |= {name for name, _ in self.outputs.values()}
        self.constants = {name: array for name, array in self.constants.items() if name in read}

    def to_model(self) -> onnx.ModelProto:
        """The graph as an ONNX model whose outputs have their public names."""
        self._give_outputs_nodes()
        self.prune()
        public = {name: key for key, (name, _) in self.outputs.items()}
        names = {name: name for name in ("", *self.inputs)}
        taken = dict.fromkeys([*self.inputs, *self.outputs], 1)
        names |= {name: _unique(self._labels[name], taken) for name in self.constants}
        nodes = []
        for node in self.nodes.values():
            label = _unique(node.path + node.op, taken)
            names[node.output] = public.get(node.output, label)
            self.node_names[node.output] = label
            inputs, output = [names[each] for each in node.inputs], names[node.output]
            unread = [f"{label}/unread_{i}" for i in range(node.position)]
            nodes.append(helper.make_node(node.op, inputs, [*unread, output], name=label, **node.attributes))
        graph = helper.make_graph(
            nodes,
            "model",
            [_value_info(name, kind) for name, kind in self.inputs.items()],
            [_value_info(name, kind) for name, (_, kind) in self.outputs.items()],
            [numpy_helper.from_array(array, names[name]) for name, array in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="jaxcnn")
        model.ir_version = IR_VERSION
        return model

    def _give_outputs_nodes(self) -> None:
        """An output that is an input, a constant or another output too becomes a copy of it."""
        named: set[str] = set()
        for public, (name, kind) in list(self.outputs.items()):
            if name in named or name not in self.nodes:
                name = self.add("Identity", [name], shape=kind.shape, path="")
                self.outputs[public] = (name, kind)
            named.add(name)

    def _new_name(self, label: str) -> str:
        self._count += 1
        return f"{label}#{self._count}"


def _unique(label: str, taken: dict[str, int]) -> str:
    """The label, with a number if it is taken."""
    count = taken.get(label, 0)
    taken[label] = count + 1
    return _unique(f"{label}_{count}", taken) if count else label


def _value_info(name: str, kind: ValueType) -> onnx.ValueInfoProto:
    shape = [dim if isinstance(dim, int) else str(dim) for dim in kind.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind.dtype), shape)
