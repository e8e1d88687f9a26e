"""ONNX's operators broadcast on their own, so most of jax's explicit broadcasts can go."""

from collections.abc import Sequence

from export.graph import Graph, Node, Shape

_BROADCASTING = frozenset(
    ("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or", "Pow")
) | {"Sub", "Where", "Xor"}


def drop_expansions(graph: Graph) -> None:
    """Reads the unexpanded value wherever the other operands already have the size."""
    for node in graph.nodes.values():
        if node.op in _BROADCASTING:
            for position in range(len(node.inputs)):
                _drop(graph, node, position)


def _drop(graph: Graph, node: Node, position: int) -> None:
    expansion = graph.producer(node.inputs[position], "Expand")
    if expansion is not None:
        inputs = list(node.inputs)
        inputs[position] = expansion.inputs[0]
        if _broadcast([graph.shapes[each] for each in inputs]) == graph.shapes[node.output]:
            node.inputs = inputs


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((dim for dim in column if dim != 1), 1) for column in columns)
