"""Activation functions that are one operator of ONNX, recognised by what they compute, never by a name."""

import numpy as np

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
    if kept not in product.inputs:
        return None
    slope = product.inputs[product.inputs[0] == kept]
    # There is no LeakyRelu of integers.
    return graph.scalar(slope) if slope in graph.constants and graph.constants[slope].dtype == np.float32 else None


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


def simplify_gelu(graph: Graph) -> None:
    """Of x erfc(-c x) small values are not to be exact in relative terms: 1 - erf(-c x) will do."""
    for node in list(graph.nodes.values()):
        for value, complement in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else ():
            rough = graph.rough.get(complement)
            if rough is not None and graph.only_consumer(complement) is node and _is_gelu(graph, value, rough):
                graph.replace(complement, rough)


def _is_gelu(graph: Graph, value: str, rough: str) -> bool:
    """Whether a value times 1 - erf(y) is that of an x and a y of opposite sign, multiples of one another."""
    error = graph.nodes[graph.nodes[rough].inputs[1]]
    (source, factor), (argument, slope) = _linear(graph, value), _linear(graph, error.inputs[0])
    return source == argument and factor * slope < 0


def _linear(graph: Graph, name: str) -> tuple[str, float]:
    """The value and the number that a chain of Mul and Neg multiplies."""
    factor = 1.0
    while (node := graph.producer(name, "Mul", "Neg")) is not None:
        scaled = (node.inputs[0], -1.0) if node.op == "Neg" else _scaled(graph, node)
        if scaled is None:
            break
        name, factor = scaled[0], factor * scaled[1]
    return name, factor


def fuse_gelu(graph: Graph) -> None:
    """1 - erf(-c x) is 1 + erf(c x), the form that runtimes know a GELU by."""
    for node in list(graph.nodes.values()):
        error = (
            graph.producer(node.inputs[1], "Erf") if node.op == "Sub" and graph.scalar(node.inputs[0]) == 1 else None
        )
        value, factor = _linear(graph, error.inputs[0]) if error is not None else ("", 1.0)
        if error is not None and factor < 0:
            shape, path = graph.shapes[error.output], node.path
            divisor = graph.add_constant(np.array(-1 / factor, np.float32), f"{path}divisor")
            quotient = graph.add("Div", [value, divisor], shape=shape, path=path)
            erf = graph.add("Erf", [quotient], shape=shape, path=path)
            node.op, node.inputs = "Add", [erf, node.inputs[0]]


def _scaled(graph: Graph, product: Node) -> tuple[str, float] | None:
    """The value and the number that a Mul multiplies."""
    for value, other in (product.inputs, product.inputs[::-1]):
        factor = graph.scalar(other)
        if factor is not None and graph.shapes[value] == graph.shapes[product.output]:
            return value, factor
    return None


def fuse_clip(graph: Graph) -> None:
    """min(max(0, x), c), such as in relu6."""
    for node in list(graph.nodes.values()):
        for rectified, bound in (node.inputs, node.inputs[::-1]) if node.op == "Min" and len(node.inputs) == 2 else ():
            relu, highest = graph.producer(rectified, "Relu"), graph.scalar(bound)
            if relu is not None and highest is not None and highest >= 0:
                low = graph.add_constant(np.zeros((), np.float32), f"{node.path}low")
                high = graph.add_constant(np.array(highest, np.float32), f"{node.path}high")
                node.op, node.inputs = "Clip", [relu.inputs[0], low, high]
                break


def fuse_hard_sigmoid(graph: Graph) -> None:
    """clip(x + a, 0, c) / c is HardSigmoid, x / c + a / c between 0 and 1."""
    for node in list(graph.nodes.values()):
        clip = graph.producer(node.inputs[0], "Clip") if node.op == "Div" else None
        total = graph.producer(clip.inputs[0], "Add") if clip is not None else None
        divisor = graph.scalar(node.inputs[1]) if clip is not None else None
        if clip is None or total is None or not divisor or divisor < 0:
            continue
        shift, shape = graph.scalar(total.inputs[1]), graph.shapes[node.output]
        bounds = [graph.scalar(each) for each in clip.inputs[1:]]
        if shift is not None and bounds == [0, divisor] and graph.shapes[total.inputs[0]] == shape:
            node.op, node.inputs = "HardSigmoid", [total.inputs[0]]
            node.attributes = {"alpha": 1 / divisor, "beta": shift / divisor}


def fuse_elu(graph: Graph) -> None:
    """X where it is positive, elsewhere a (exp(x) - 1)."""
    for node in list(graph.nodes.values()):
        alpha = _elu(graph, node) if node.op == "Where" else None
        if alpha is not None:
            node.op, node.inputs, node.attributes = "Elu", [node.inputs[1]], {"alpha": alpha}


def _elu(graph: Graph, where: Node) -> float | None:
    predicate, value, negative = where.inputs
    sign, product = graph.producer(predicate, "Greater"), graph.producer(negative, "Mul")
    if sign is None or product is None or sign.inputs[0] != value or graph.scalar(sign.inputs[1]) != 0:
        return None
    if graph.shapes[value] != graph.shapes[where.output]:
        return None
    alpha, exponential = 1.0, product
    scaled = _scaled(graph, product)
    if scaled is not None:
        inner = graph.producer(scaled[0], "Mul")
        if inner is None:
            return None
        alpha, exponential = scaled[1], inner
    bounded = _expm1_argument(graph, exponential)
    selection = graph.producer(bounded, "Where") if bounded is not None else None
    if selection is None or selection.inputs[0] != predicate or selection.inputs[2] != value:
        return None
    return alpha if graph.scalar(selection.inputs[1]) == 0 else None


def _expm1_argument(graph: Graph, product: Node) -> str | None:
    """Of tanh(x / 2) (exp(x) + 1) the x."""
    tangent, total = graph.producer(product.inputs[0], "Tanh"), graph.producer(product.inputs[1], "Add")
    half = graph.producer(tangent.inputs[0], "Mul") if tangent is not None else None
    exponential = graph.producer(total.inputs[0], "Exp") if total is not None else None
    if half is None or exponential is None or total is None or graph.scalar(total.inputs[1]) != 1:
        return None
    value = exponential.inputs[0]
    return value if half.inputs[0] == value and graph.scalar(half.inputs[1]) == 0.5 else None
