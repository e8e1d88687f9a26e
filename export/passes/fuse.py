"""Groups of operators that are one operator of ONNX, recognised by what they compute, never by a name."""

from export.graph import Graph, Node


def fuse_leaky_relu(graph: Graph) -> None:
    """Where(x >= 0, x, slope * x)."""
    for node in list(graph.nodes.values()):
        slope = _slope(graph, node) if node.op == "Where" else None
        if slope is not None:
            node.op, node.inputs, node.attributes = "LeakyRelu", [node.inputs[1]], {"alpha": slope}


def _slope(graph: Graph, where: Node) -> float | None:
    predicate, kept, scaled = where.inputs
    sign, product = graph.producer(predicate, "GreaterOrEqual", "Greater"), graph.producer(scaled, "Mul")
    if sign is None or product is None or sign.inputs[0] != kept or graph.scalar(sign.inputs[1]) != 0:
        return None
    if graph.shapes[kept] != graph.shapes[where.output]:
        return None
    left, right = product.inputs
    return graph.scalar(right) if left == kept else graph.scalar(left) if right == kept else None


def fuse_softmax(graph: Graph) -> None:
    """exp(x - c) / sum(exp(x - c)), for any c that is constant along the axis of the sum: the result is the same."""
    for node in list(graph.nodes.values()):
        found = _softmax(graph, node) if node.op == "Div" else None
        if found is not None:
            value, axis = found
            node.op, node.inputs, node.attributes = "Softmax", [value], {"axis": axis}


def _softmax(graph: Graph, division: Node) -> tuple[str, int] | None:
    exponential, spread = graph.producer(division.inputs[0], "Exp"), graph.producer(division.inputs[1], "Reshape")
    total = graph.producer(spread.inputs[0], "ReduceSum") if spread is not None else None
    if exponential is None or spread is None or total is None or total.inputs[0] != exponential.output:
        return None
    axes = graph.constants[total.inputs[1]]
    difference = graph.producer(exponential.inputs[0], "Sub")
    if axes.size != 1 or difference is None:
        return None
    axis, shape = int(axes[0]), graph.shapes[exponential.output]
    value, offset = difference.inputs
    per_row = (*shape[:axis], 1, *shape[axis + 1 :])
    aligned = graph.shapes[value] == shape and graph.shapes[offset] == graph.shapes[spread.output] == per_row
    return (value, axis) if aligned else None
