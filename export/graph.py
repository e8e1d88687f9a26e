"""An ONNX graph under construction: nodes, constants and shapes by name, and the queries that the passes need."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17
"""The newest operator set that all supported runtimes read; newer ones move axes from attributes to inputs."""
IR_VERSION = 8

Dim = Any
"""A size: an int, or a symbolic dimension of JAX."""
Shape = tuple[Dim, ...]

_NARROW = ("bfloat16", "float16", "float8_")


def exported_dtype(dtype: Any) -> np.dtype[Any]:
    """Returns the element type that values of a JAX type have in the graph.

    Floats narrower than float32 become float32, which every runtime supports: values in half precision are computed
    more precisely than in JAX. Conversions to 8-bit floats still round to the 8-bit values (see `rules.floats`).
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
    """One operator, of which one output is read.

    Attributes:
      inputs: names of values; the empty string stands for an omitted optional operand.
      path: path in the module tree, such as `ResNet/Block_2/Conv_1/`; empty at the top.
      position: index of the operator's output that is read; the outputs before it are computed and ignored.
    """

    op: str
    inputs: list[str]
    output: str
    path: str
    attributes: dict[str, Any] = field(default_factory=dict)
    position: int = 0


class Graph:
    """Nodes in any order, each of which computes one named value of a known shape.

    Attributes:
      inputs: type of each input.
      outputs: for each public output, the name of its value, and its type.
      nodes: nodes by the name of the value they compute.
      constants: arrays by name.
      shapes: shapes of all values, constants included.
      approximations: for a value that is exact to a relative error, the name of a cheaper value with the same meaning
        that is exact to an absolute error of 1e-7. Passes use it where the relative error is lost anyway.
      origins: which value of the traced function a value equals, as the builder of the graph identifies them
        (`converter.Origin`). Values that exist in the graph alone have none.
      node_names: for the model that `to_model` made last, the name of the node that computes each value.
    """

    def __init__(self, inputs: dict[str, ValueType]):
        self.inputs = inputs
        self.outputs: dict[str, tuple[str, ValueType]] = {}
        self.nodes: dict[str, Node] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {name: kind.shape for name, kind in inputs.items()}
        self.approximations: dict[str, str] = {}
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
        """Adds an array and returns its name. The model uses the label as name, with a number if it is taken."""
        name = self._new_name(label)
        self._labels[name] = label
        self.set_constant(name, array)
        return name

    def set_constant(self, name: str, array: np.ndarray) -> None:
        """Replaces an array for all nodes that read it."""
        # NumPy's ascontiguousarray turns scalars into vectors.
        self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        self.shapes[name] = array.shape

    def producer(self, name: str, *ops: str) -> Node | None:
        """Returns the node that computes a value, or None if there is none or `ops` does not list its operator."""
        node = self.nodes.get(name)
        return node if node is not None and (not ops or node.op in ops) else None

    def own_constant(self, node: Node, position: int) -> np.ndarray | None:
        """Returns an operand of a node if it is a constant that nothing else reads, else None."""
        name = node.inputs[position]
        return self.constants[name] if name in self.constants and self.only_consumer(name) is node else None

    def scalar(self, name: str) -> float | None:
        """Returns the value of a constant with one element, else None."""
        array = self.constants.get(name)
        return float(array.item()) if array is not None and array.size == 1 else None

    def consumers(self, name: str) -> list[Node | None]:
        """Returns the nodes that read a value, once per operand; None stands for an output of the graph."""
        nodes: list[Node | None] = [node for node in self.nodes.values() for operand in node.inputs if operand == name]
        return nodes + [None for value, _ in self.outputs.values() if value == name]

    def only_consumer(self, name: str) -> Node | None:
        """Returns the only node that reads a value; None if there are more, or if the value is an output."""
        nodes = self.consumers(name)
        return nodes[0] if len(nodes) == 1 else None

    def replace(self, old: str, new: str) -> None:
        """Redirects every reader of `old` to `new`, a value of the same shape, which also takes over its origin."""
        if old in self.origins:
            self.origins[new] = self.origins.pop(old)
        else:
            self.origins.pop(new, None)
        for node in self.nodes.values():
            node.inputs = [new if operand == old else operand for operand in node.inputs]
        self.outputs = {key: (new if name == old else name, kind) for key, (name, kind) in self.outputs.items()}

    def sorted_nodes(self) -> list[Node]:
        """Returns the nodes that the outputs need, each after the nodes that it reads."""
        needed: dict[str, list[str]] = {}
        pending = [name for name, _ in self.outputs.values()]
        while pending:
            node = self.nodes.get(pending.pop())
            if node is not None and node.output not in needed:
                needed[node.output] = [operand for operand in node.inputs if operand in self.nodes]
                pending += node.inputs
        return [self.nodes[name] for name in TopologicalSorter(needed).static_order()]

    def prune(self) -> None:
        """Drops the nodes and constants that no output needs."""
        self.nodes = {node.output: node for node in self.sorted_nodes()}
        read = {name for node in self.nodes.values() for name in node.inputs}
        read |= {name for name, _ in self.outputs.values()}
        self.constants = {name: array for name, array in self.constants.items() if name in read}

    def to_model(self) -> onnx.ModelProto:
        """Returns the graph as an ONNX model whose nodes are named after the modules they come from."""
        self._give_outputs_nodes()
        self.prune()

        # Public names belong to inputs and outputs; constants and nodes get numbers if their names are taken.
        public = {name: key for key, (name, _) in self.outputs.items()}
        names = {name: name for name in ("", *self.inputs)}
        taken = dict.fromkeys([*self.inputs, *self.outputs], 1)
        names |= {name: _unique(self._labels[name], taken) for name in self.constants}

        nodes = []
        for node in self.nodes.values():
            label = _unique(node.path + node.op, taken)
            names[node.output] = public.get(node.output, label)
            self.node_names[node.output] = label
            inputs, output = [names[operand] for operand in node.inputs], names[node.output]
            unread = [f"{label}/unread_{i}" for i in range(node.position)]
            nodes.append(helper.make_node(node.op, inputs, [*unread, output], name=label, **node.attributes))

        # Shapes of values inside (value_info) are left to the runtimes, which trust stale ones over their inference.
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
        """Adds an Identity for each output that is an input, a constant, or the same value as another output."""
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
    """Returns the label, with a number appended if it is taken."""
    count = taken.get(label, 0)
    taken[label] = count + 1
    return _unique(f"{label}_{count}", taken) if count else label


def _value_info(name: str, kind: ValueType) -> onnx.ValueInfoProto:
    shape = [dim if isinstance(dim, int) else str(dim) for dim in kind.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind.dtype), shape)
