"""Fusion of activation functions into one ONNX operator; they are recognised by their formulas, never by name."""

import numpy as np

from export.graph import Graph, Node

_UNIT = {"low": 0, "high": 1}


def fuse_leaky_relu(graph: Graph) -> None:
    """Fuses Where(x >= 0, x, slope * x) into LeakyRelu."""
    for node in list(graph.nodes.values()):
        slope = _slope(graph, node) if node.op == "Where" else None
        if slope is not None:
            node.op, node.inputs, node.attributes = "LeakyRelu", [node.inputs[1]], {"alpha": slope}


def _slope(graph: Graph, where: Node) -> float | None:
    """Returns the slope of a leaky ReLU that ends in this Where, or None if it is something else."""
    predicate, kept, scaled = where.inputs
    sign, product = graph.producer(predicate, "GreaterOrEqual", "Greater"), graph.producer(scaled, "Mul")
    if sign is None or product is None or sign.inputs[0] != kept or graph.scalar(sign.inputs[1]) != 0:
        return None
    if graph.shapes[kept] != graph.shapes[where.output]:
        return None
    if kept not in product.inputs:
        return None
    slope = product.inputs[product.inputs[0] == kept]
    # LeakyRelu takes floats only.
    return graph.scalar(slope) if slope in graph.constants and graph.constants[slope].dtype == np.float32 else None


def fuse_softmax(graph: Graph) -> None:
    """Fuses exp(x - c) / sum(exp(x - c)) into Softmax.

    Any c that is constant along the axis of the sum gives the same result; JAX takes the maximum of x.
    """
    for node in list(graph.nodes.values()):
        found = _softmax(graph, node) if node.op == "Div" else None
        if found is not None:
            value, axis = found
            node.op, node.inputs, node.attributes = "Softmax", [value], {"axis": axis}


def _softmax(graph: Graph, division: Node) -> tuple[str, int] | None:
    """Returns the operand and the axis of a softmax that ends in this Div, or None if it is something else."""
    # JAX sums without the axis and puts it back by a reshape.
    exponential, spread = graph.producer(division.inputs[0], "Exp"), graph.producer(division.inputs[1], "Reshape")
    total = graph.producer(spread.inputs[0], "ReduceSum") if spread is not None else None
    if exponential is None or spread is None or total is None or total.inputs[0] != exponential.output:
        return None
    axes = graph.constants[total.inputs[1]]
    difference = graph.producer(exponential.inputs[0], "Sub")
    if axes.size != 1 or difference is None:
        return None

    # Both the offset and the divisor must have one value per row.
    axis, shape = int(axes[0]), graph.shapes[exponential.output]
    value, offset = difference.inputs
    per_row = (*shape[:axis], 1, *shape[axis + 1 :])
    aligned = graph.shapes[value] == shape and graph.shapes[offset] == graph.shapes[spread.output] == per_row
    return (value, axis) if aligned else None


def simplify_gelu(graph: Graph) -> None:
    """Replaces erfc(-c x) by the cheaper 1 - erf(-c x) in an exact GELU, x erfc(-c x).

    The two differ by less than 1e-7. Where erfc is smaller than that, x is far below zero and the GELU itself is close
    to zero, so the relative error of such values does not matter.
    """
    for node in list(graph.nodes.values()):
        for value, complement in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else ():
            approximation = graph.approximations.get(complement)
            if approximation is None or graph.only_consumer(complement) is not node:
                continue
            if _is_gelu(graph, value, approximation):
                graph.replace(complement, approximation)


def _is_gelu(graph: Graph, value: str, complement: str) -> bool:
    """Returns whether value x and complement 1 - erf(y) make a GELU: y is a negative multiple of x."""
    error = graph.nodes[graph.nodes[complement].inputs[1]]
    (source, factor), (argument, slope) = _linear(graph, value), _linear(graph, error.inputs[0])
    return source == argument and factor * slope < 0


def _linear(graph: Graph, name: str) -> tuple[str, float]:
    """Returns the source and the total factor of a chain of Mul and Neg that ends at a value."""
    factor = 1.0
    while (node := graph.producer(name, "Mul", "Neg")) is not None:
        scaled = (node.inputs[0], -1.0) if node.op == "Neg" else _scaled(graph, node)
        if scaled is None:
            break
        name, factor = scaled[0], factor * scaled[1]
    return name, factor


def fuse_gelu(graph: Graph) -> None:
    """Rewrites 1 - erf(-c x) as 1 + erf(x / d), d = 1 / c, the form of GELU that runtimes fuse."""
    for node in list(graph.nodes.values()):
        if node.op != "Sub" or graph.scalar(node.inputs[0]) != 1:
            continue
        error = graph.producer(node.inputs[1], "Erf")
        value, factor = _linear(graph, error.inputs[0]) if error is not None else ("", 1.0)
        if error is not None and factor < 0:
            shape, path = graph.shapes[error.output], node.path
            divisor = graph.add_constant(np.array(-1 / factor, np.float32), f"{path}divisor")
            quotient = graph.add("Div", [value, divisor], shape=shape, path=path)
            erf = graph.add("Erf", [quotient], shape=shape, path=path)
            node.op, node.inputs = "Add", [erf, node.inputs[0]]


def _scaled(graph: Graph, product: Node) -> tuple[str, float] | None:
    """Returns the value and the number that a Mul multiplies, or None if neither operand is a number."""
    for value, other in (product.inputs, product.inputs[::-1]):
        factor = graph.scalar(other)
        if factor is not None and graph.shapes[value] == graph.shapes[product.output]:
            return value, factor
    return None


def fuse_clip(graph: Graph) -> None:
    """Fuses min(max(0, x), c), as in relu6, into Clip."""
    for node in list(graph.nodes.values()):
        for rectified, bound in (node.inputs, node.inputs[::-1]) if node.op == "Min" and len(node.inputs) == 2 else ():
            relu, highest = graph.producer(rectified, "Relu"), graph.scalar(bound)
            if relu is not None and highest is not None and highest >= 0:
                low = graph.add_constant(np.zeros((), np.float32), f"{node.path}low")
                high = graph.add_constant(np.array(highest, np.float32), f"{node.path}high")
                node.op, node.inputs = "Clip", [relu.inputs[0], low, high]
                break


def fuse_hard_sigmoid(graph: Graph) -> None:
    """Fuses clip(x + a, 0, c) / c into HardSigmoid, which is x / c + a / c clipped to [0, 1].

    A gate, which multiplies something other than x, becomes Clip instead, since OpenCV takes any product with a
    HardSigmoid for a hard swish of x. The scale and the shift before it can be folded into the layer that computes x.
    """
    for node in list(graph.nodes.values()):
        clip = graph.producer(node.inputs[0], "Clip") if node.op == "Div" else None
        total = graph.producer(clip.inputs[0], "Add") if clip is not None else None
        divisor = graph.scalar(node.inputs[1]) if clip is not None else None
        if clip is None or total is None or not divisor or divisor < 0:
            continue
        shift, shape = graph.scalar(total.inputs[1]), graph.shapes[node.output]
        bounds = [graph.scalar(name) for name in clip.inputs[1:]]
        value = total.inputs[0]
        products = [user for user in graph.consumers(node.output) if user is not None and user.op == "Mul"]
        is_gate = any(value not in product.inputs for product in products)
        if shift is None or bounds != [0, divisor] or graph.shapes[value] != shape:
            continue
        if is_gate:
            _divide_before(graph, node, value, shift, divisor)
        else:
            node.op, node.inputs = "HardSigmoid", [value]
            node.attributes = {"alpha": 1 / divisor, "beta": shift / divisor}


def _divide_before(graph: Graph, node: Node, value: str, shift: float, divisor: float) -> None:
    """Makes a node compute clip(x / c + a / c, 0, 1)."""
    for op, operand in (("Mul", 1 / divisor), ("Add", shift / divisor)):
        constant = graph.add_constant(np.array(operand, np.float32), f"{node.path}{op.lower()}")
        value = graph.add(op, [value, constant], shape=graph.shapes[node.output], path=node.path)
    bounds = [graph.add_constant(np.array(bound, np.float32), f"{node.path}{name}") for name, bound in _UNIT.items()]
    node.op, node.inputs = "Clip", [value, *bounds]


def fuse_elu(graph: Graph) -> None:
    """Fuses Where(x > 0, x, a * expm1(Where(x > 0, 0, x))) into Elu."""
    for node in list(graph.nodes.values()):
        alpha = _elu(graph, node) if node.op == "Where" else None
        if alpha is not None:
            node.op, node.inputs, node.attributes = "Elu", [node.inputs[1]], {"alpha": alpha}


def _elu(graph: Graph, where: Node) -> float | None:
    """Returns the factor a of an ELU that ends in this Where, or None if it is something else."""
    predicate, value, negative = where.inputs
    sign, product = graph.producer(predicate, "Greater"), graph.producer(negative, "Mul")
    if sign is None or product is None or sign.inputs[0] != value or graph.scalar(sign.inputs[1]) != 0:
        return None
    if graph.shapes[value] != graph.shapes[where.output]:
        return None

    # The rule of expm1 makes a product too: without a factor it is the only one.
    alpha, exponential = 1.0, product
    scaled = _scaled(graph, product)
    if scaled is not None:
        inner = graph.producer(scaled[0], "Mul")
        if inner is None:
            return None
        alpha, exponential = scaled[1], inner

    # jax.nn.elu replaces positive x by 0 in the exponential, so that it cannot overflow.
    bounded = _expm1_argument(graph, exponential)
    selection = graph.producer(bounded, "Where") if bounded is not None else None
    if selection is None or selection.inputs[0] != predicate or selection.inputs[2] != value:
        return None
    return alpha if graph.scalar(selection.inputs[1]) == 0 else None


def _expm1_argument(graph: Graph, product: Node) -> str | None:
    """Returns x if this Mul is tanh(x / 2) * (exp(x) + 1), which is expm1(x), else None."""
    tangent, total = graph.producer(product.inputs[0], "Tanh"), graph.producer(product.inputs[1], "Add")
    half = graph.producer(tangent.inputs[0], "Mul") if tangent is not None else None
    exponential = graph.producer(total.inputs[0], "Exp") if total is not None else None
    if half is None or exponential is None or total is None or graph.scalar(total.inputs[1]) != 1:
        return None
    value = exponential.inputs[0]
    return value if half.inputs[0] == value and graph.scalar(half.inputs[1]) == 0.5 else None
