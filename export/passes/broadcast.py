"""Removal of explicit broadcasts: jax broadcasts operands before an operator, ONNX's operators do it themselves."""

from collections.abc import Sequence

from export.graph import Graph, Node, Shape

_BROADCASTING = frozenset(
    ("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or", "Pow")
) | {"Sub", "Where", "Xor"}


def drop_expansions(graph: Graph) -> None:
    """Makes nodes read the operand of an Expand where their other operands already have its size."""
    for node in graph.nodes.values():
        if node.op in _BROADCASTING:
            for position in range(len(node.inputs)):
                _drop(graph, node, position)


def _drop(graph: Graph, node: Node, position: int) -> None:
    expansion = graph.producer(node.inputs[position], "Expand")
    if expansion is not None:
        inputs = list(node.inputs)
        inputs[position] = expansion.inputs[0]
        if _broadcast([graph.shapes[name] for name in inputs]) == graph.shapes[node.output]:
            node.inputs = inputs


def drop_leading_axes(graph: Graph) -> None:
    """Makes a vector of each constant [1, ..., 1, n] that is an operand beside a value of as many axes.

    Runtimes fuse a layer normalisation only if its scale and shift are vectors.
    """
    for node in graph.nodes.values():
        if node.op in _BROADCASTING:
            for position, name in enumerate(node.inputs):
                array = graph.constants.get(name)
                if array is None or array.ndim < 2 or array.size == 1:
                    continue
                others = [other for other in node.inputs if other != name]
                if array.size == array.shape[-1] and any(len(graph.shapes[other]) >= array.ndim for other in others):
                    node.inputs[position] = graph.add_constant(array.reshape(-1), f"{node.path}vector")


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((dim for dim in column if dim != 1), 1) for column in columns)
