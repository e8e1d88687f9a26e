"""Fewer transposes: moved to where they meet and cancel, or into the weights of the next layer."""

from collections.abc import Sequence

import numpy as np

from export.graph import Graph, Node

_UNARY = frozenset(
    ("Abs", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid")
) | {"Sqrt", "Tanh"}
_BINARY = frozenset(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"))


def hoist_transposes(graph: Graph) -> None:
    """Moves a Transpose up through element-by-element operators with constants, to an input or another Transpose.

    A picture is so transposed once, right after its Cast to float, and what normalised it comes to lie beside the
    first convolution, where it can be folded.
    """
    while any(_hoist(graph, node) for node in list(graph.nodes.values()) if node.op == "Transpose"):
        graph.prune()


def _hoist(graph: Graph, transpose: Node) -> bool:
    passed = passable(graph, transpose.inputs[0])
    name = variable(graph, passed[-1]) if passed else transpose.inputs[0]
    top, perm = graph.producer(name), transpose.attributes["perm"]
    if top is not None and top.op == "Transpose":
        name, perm = top.inputs[0], [top.attributes["perm"][axis] for axis in perm]
    elif not passed or not (top is None or top.op == "Cast" or _moves_ones(graph, name, perm)):
        return False
    name = transposed(graph, name, perm, transpose.path)
    for node in reversed(passed):
        moved = variable(graph, node)
        perm = transpose.attributes["perm"]
        inputs = [name if each == moved else _transposed_constant(graph, each, perm, node.path) for each in node.inputs]
        shape = tuple(graph.shapes[node.output][axis] for axis in perm)
        name = graph.add(node.op, inputs, shape=shape, path=node.path, **node.attributes)
    graph.replace(transpose.output, name)
    return True


def passable(graph: Graph, name: str) -> list[Node]:
    """The operators that a Transpose of this value can move above, from the lowest up."""
    passed: list[Node] = []
    while (node := graph.producer(name, *_UNARY, *_BINARY)) is not None and graph.only_consumer(name) is not None:
        variables = [each for each in node.inputs if each not in graph.constants]
        if len(variables) != 1 or len(graph.shapes[variables[0]]) != len(graph.shapes[name]):
            break
        passed.append(node)
        name = variables[0]
    return passed


def variable(graph: Graph, node: Node) -> str:
    """The first operand that is no constant."""
    return next(each for each in node.inputs if each not in graph.constants)


def transposed(graph: Graph, name: str, perm: Sequence[int], path: str) -> str:
    """The value transposed, by a node that exists if there is one."""
    if list(perm) == list(range(len(perm))):
        return name
    for node in graph.nodes.values():
        if node.op == "Transpose" and node.inputs == [name] and list(node.attributes["perm"]) == list(perm):
            return node.output
    shape = tuple(graph.shapes[name][axis] for axis in perm)
    if _moves_ones(graph, name, perm) and sum(not isinstance(dim, int) for dim in shape) <= 1:
        sizes = np.array([dim if isinstance(dim, int) else -1 for dim in shape], np.int64)
        return graph.add("Reshape", [name, graph.add_constant(sizes, f"{path}shape")], shape=shape, path=path)
    return graph.add("Transpose", [name], shape=shape, path=path, perm=list(perm))


def _moves_ones(graph: Graph, name: str, perm: Sequence[int]) -> bool:
    """Whether a Transpose leaves the elements where they are, since all axes that it moves have size 1."""
    wide = [axis for axis in perm if graph.shapes[name][axis] != 1]
    return wide == sorted(wide)


def _transposed_constant(graph: Graph, name: str, perm: Sequence[int], path: str) -> str:
    array = graph.constants[name]
    if array.ndim == 0:
        return name
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return graph.add_constant(full.transpose(perm), f"{path}constant")


def sink_reshapes(graph: Graph) -> None:
    """Moves a Reshape below the products with one number, which so come to lie beside what they can be folded into."""
    while any(_sink(graph, node) for node in list(graph.nodes.values()) if node.op in ("Mul", "Div")):
        graph.prune()


def _sink(graph: Graph, node: Node) -> bool:
    above = graph.producer(node.inputs[0], "Reshape", "Flatten")
    if above is None or graph.only_consumer(above.output) is not node or graph.scalar(node.inputs[1]) is None:
        return False
    if graph.shapes[node.output] != graph.shapes[above.output]:
        return False
    shape = graph.shapes[above.inputs[0]]
    product = graph.add(node.op, [above.inputs[0], node.inputs[1]], shape=shape, path=node.path)
    node.op, node.inputs, node.attributes = above.op, [product, *above.inputs[1:]], above.attributes
    return True


def join_reshapes(graph: Graph) -> None:
    """A Reshape of a Reshape is one Reshape, or none if it restores the shape."""
    for node in graph.sorted_nodes():
        above = graph.producer(node.inputs[0], "Reshape", "Flatten") if node.op == "Reshape" else None
        sizes = graph.constants.get(node.inputs[1]) if above is not None else None
        if above is None or sizes is None or 0 in sizes:  # 0 copies a size of what comes before
            continue
        node.inputs[0] = above.inputs[0]
        if graph.shapes[node.output] == graph.shapes[above.inputs[0]]:
            graph.replace(node.output, above.inputs[0])


def convolve_patches(graph: Graph) -> None:
    """A convolution of p x q patches folded into channels is one of p-fold kernel and stride on the pixels.

    With kernel[i, j] over patches and patch[a, b] of pixels, the pixel under kernel position (p i + a, q j + b) is
    the same one; as many multiplications, and no 6-d reshaping, which not every runtime knows.
    """
    for node in list(graph.nodes.values()):
        if node.op == "Conv":
            _convolve_pixels(graph, node)


def _convolve_pixels(graph: Graph, conv: Node) -> None:
    chain = _patch_chain(graph, conv)
    kernel = graph.own_constant(conv, 1)
    if chain is None or kernel is None or conv.attributes["group"] != 1 or set(conv.attributes["dilations"]) != {1}:
        return
    split, swap = chain
    source, order = split.inputs[0], swap.attributes["perm"][3:]
    _, _, p, _, q, channels = graph.shapes[split.output]
    sizes = {2: p, 4: q, 5: channels}
    outputs, _, rows, columns = kernel.shape
    axes = {axis: 1 + i for i, axis in enumerate(order)}
    parts = kernel.reshape(outputs, *(sizes[axis] for axis in order), rows, columns)
    pixels = parts.transpose(0, axes[5], 4, axes[2], 5, axes[4])
    pixels = pixels.reshape(outputs, channels, rows * p, columns * q)
    top, left, bottom, right = conv.attributes["pads"]
    vertical, horizontal = conv.attributes["strides"]
    conv.inputs[0] = transposed(graph, source, [0, 3, 1, 2], conv.path)
    graph.set_constant(conv.inputs[1], pixels)
    conv.attributes |= {
        "kernel_shape": list(pixels.shape[2:]),
        "strides": [vertical * p, horizontal * q],
        "pads": [top * p, left * q, bottom * p, right * q],
    }


def _patch_chain(graph: Graph, conv: Node) -> tuple[Node, Node] | None:
    """The Reshape to [batch, h, p, w, q, channels] and the Transpose that gathers p, q and channels, if so it is."""
    above = conv.inputs[0]
    nodes = []
    for op in ("Transpose", "Reshape", "Transpose", "Reshape"):
        node = graph.producer(above, op)
        if node is None:
            return None
        nodes.append(node)
        above = node.inputs[0]
    last, merge, swap, split = nodes
    shape, source = graph.shapes[split.output], graph.shapes[split.inputs[0]]
    if list(last.attributes["perm"]) != [0, 3, 1, 2] or len(source) != 4 or len(shape) != 6:
        return None
    batch, h, p, w, q, channels = shape
    perm = list(swap.attributes["perm"])
    gathers = perm[:3] == [0, 1, 3] and graph.shapes[merge.output] == (batch, h, w, p * q * channels)
    return (split, swap) if gathers and source == (batch, h * p, w * q, channels) else None


def absorb_flatten(graph: Graph) -> None:
    """Flattening in jax's order before a dense layer: its rows are reordered instead of the pixels."""
    for node in list(graph.nodes.values()):
        if node.op == "Gemm":
            _reorder_rows(graph, node)


def _reorder_rows(graph: Graph, gemm: Node) -> None:
    flatten, kernel = graph.producer(gemm.inputs[0], "Reshape"), graph.own_constant(gemm, 1)
    transpose = graph.producer(flatten.inputs[0], "Transpose") if flatten is not None else None
    if flatten is None or transpose is None or kernel is None:
        return
    perm, shape = transpose.attributes["perm"], graph.shapes[transpose.output]
    flat = graph.shapes[flatten.output]
    if perm[0] != 0 or flat[0] != shape[0]:
        return
    order = [perm.index(axis) - 1 for axis in range(1, len(perm))]
    rows = np.arange(kernel.shape[0]).reshape(shape[1:]).transpose(order).reshape(-1)
    inputs = [transpose.inputs[0], flatten.inputs[1]]
    gemm.inputs[0] = graph.add("Reshape", inputs, shape=flat, path=flatten.path)
    graph.set_constant(gemm.inputs[1], kernel[rows])
