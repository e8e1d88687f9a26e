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


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((dim for dim in column if dim != 1), 1) for column in columns)
