"""Removal of transposes and reshapes: they move until they cancel, or are folded into the weights of a layer."""

from collections.abc import Sequence

import numpy as np

from export.graph import Graph, Node

_UNARY = frozenset(
    ("Abs", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid")
) | {"Sqrt", "Tanh"}
_BINARY = frozenset(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"))


def hoist_transposes(graph: Graph) -> None:
    """Moves each Transpose above the elementwise operators before it, to an input, a Cast or another Transpose.

    A picture is then transposed once, right after its Cast to float (TensorRT transposes no uint8), and the arithmetic
    that normalises it comes to lie beside the first convolution, where it is folded.
    """
    while any(_hoist(graph, node) for node in list(graph.nodes.values()) if node.op == "Transpose"):
        graph.prune()


def _hoist(graph: Graph, transpose: Node) -> bool:
    """Moves one Transpose up; returns whether it could."""
    # It joins another Transpose, or moves above at least one operator, to an input or a Cast, or to where all axes that
    # it moves have size 1.
    passed = hoistable_chain(graph, transpose.inputs[0])
    name = variable_input(graph, passed[-1]) if passed else transpose.inputs[0]
    top, perm = graph.producer(name), transpose.attributes["perm"]
    if top is not None and top.op == "Transpose":
        name, perm = top.inputs[0], [top.attributes["perm"][axis] for axis in perm]
    elif not passed or not (top is None or top.op == "Cast" or _moves_ones(graph, name, perm)):
        return False

    # Transpose there, then compute the chain again below it, from the top down, with transposed constants.
    name = transposed(graph, name, perm, transpose.path)
    for node in reversed(passed):
        moved = variable_input(graph, node)
        perm = transpose.attributes["perm"]
        inputs = [
            name if operand == moved else _transposed_constant(graph, operand, perm, node.path)
            for operand in node.inputs
        ]
        shape = tuple(graph.shapes[node.output][axis] for axis in perm)
        name = graph.add(node.op, inputs, shape=shape, path=node.path, **node.attributes)
    graph.replace(transpose.output, name)
    return True


def hoistable_chain(graph: Graph, name: str) -> list[Node]:
    """Returns the elementwise operators that a Transpose of a value can move above, the last operator first."""
    passed: list[Node] = []
    while (node := graph.producer(name, *_UNARY, *_BINARY)) is not None and graph.only_consumer(name) is not None:
        variables = [operand for operand in node.inputs if operand not in graph.constants]
        if len(variables) != 1 or len(graph.shapes[variables[0]]) != len(graph.shapes[name]):
            break
        passed.append(node)
        name = variables[0]
    return passed


def variable_input(graph: Graph, node: Node) -> str:
    """Returns the first operand that is not a constant."""
    return next(operand for operand in node.inputs if operand not in graph.constants)


def transposed(graph: Graph, name: str, perm: Sequence[int], path: str) -> str:
    """Returns a value transposed, by an existing node if there is one, by a Reshape if that is enough."""
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
    """Returns whether a Transpose moves only axes of size 1, and so leaves all elements where they are."""
    wide = [axis for axis in perm if graph.shapes[name][axis] != 1]
    return wide == sorted(wide)


def _transposed_constant(graph: Graph, name: str, perm: Sequence[int], path: str) -> str:
    """Returns a constant transposed, after the leading axes that broadcasting implies have been added."""
    array = graph.constants[name]
    if array.ndim == 0:
        return name
    full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return graph.add_constant(full.transpose(perm), f"{path}constant")


def sink_reshapes(graph: Graph) -> None:
    """Moves each Reshape below products with one number, which then lie beside layers that they can be folded into."""
    while any(_sink(graph, node) for node in list(graph.nodes.values()) if node.op in ("Mul", "Div")):
        graph.prune()


def _sink(graph: Graph, node: Node) -> bool:
    """Exchanges a Mul or Div with the Reshape above it; returns whether it could."""
    above = graph.producer(node.inputs[0], "Reshape", "Flatten")
    if above is None or graph.only_consumer(above.output) is not node or graph.scalar(node.inputs[1]) is None:
        return False
    if graph.shapes[node.output] != graph.shapes[above.output]:
        return False
    # A number of more axes than the Reshape's operand would add some to the product.
    number = node.inputs[1]
    if graph.shapes[number]:
        number = graph.add_constant(graph.constants[number].reshape(()), f"{node.path}{node.op.lower()}")
    shape = graph.shapes[above.inputs[0]]
    product = graph.add(node.op, [above.inputs[0], number], shape=shape, path=node.path)
    node.op, node.inputs, node.attributes = above.op, [product, *above.inputs[1:]], above.attributes
    return True


def join_reshapes(graph: Graph) -> None:
    """Makes a Reshape of a Reshape one Reshape, or none if it restores the original shape."""
    for node in graph.sorted_nodes():
        above = graph.producer(node.inputs[0], "Reshape", "Flatten") if node.op == "Reshape" else None
        sizes = graph.constants.get(node.inputs[1]) if above is not None else None
        # A 0 copies the size of an axis of the operand, which would change.
        if above is None or sizes is None or 0 in sizes:
            continue
        node.inputs[0] = above.inputs[0]
        if graph.shapes[node.output] == graph.shapes[above.inputs[0]]:
            graph.replace(node.output, above.inputs[0])


def convolve_patches(graph: Graph) -> None:
    """Replaces a convolution of p x q patches by a convolution of pixels with p-fold (q-fold) kernel and stride.

    The patches were made by folding p x q pixels into channels (space to depth). Kernel position (p i + a, q j + b) of
    the new convolution covers the pixel (a, b) of the patch under position (i, j) of the old one. The number of
    multiplications is the same, and the reshapes to six axes, which some runtimes do not support, disappear.
    """
    for node in list(graph.nodes.values()):
        if node.op == "Conv":
            _convolve_pixels(graph, node)


def _convolve_pixels(graph: Graph, conv: Node) -> None:
    chain = _patch_chain(graph, conv)
    kernel = graph.own_constant(conv, 1)
    if chain is None or kernel is None or conv.attributes["group"] != 1 or set(conv.attributes["dilations"]) != {1}:
        return

    # The kernel's input channels are (p, q, channels) in the order in which the Transpose gathered them.
    split, swap = chain
    source, order = split.inputs[0], swap.attributes["perm"][3:]
    _, _, p, _, q, channels = graph.shapes[split.output]
    sizes = {2: p, 4: q, 5: channels}
    outputs, _, rows, columns = kernel.shape
    axes = {axis: 1 + i for i, axis in enumerate(order)}
    parts = kernel.reshape(outputs, *(sizes[axis] for axis in order), rows, columns)

    # To [outputs, channels, rows, p, columns, q], then rows and p merge, and columns and q.
    pixels = parts.transpose(0, axes[5], 4, axes[2], 5, axes[4])
    pixels = pixels.reshape(outputs, channels, rows * p, columns * q)

    # Read the pixels themselves; strides and pads count pixels instead of patches.
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
    """Returns the nodes that make the patches that a convolution reads, or None if it reads something else.

    These are a Reshape to [batch, h, p, w, q, channels] and a Transpose that puts p, q and channels last. The Reshape
    that merges them and the Transpose to channels-first, which follow, are not returned.
    """
    # Collect the four nodes from the convolution upwards.
    above = conv.inputs[0]
    nodes = []
    for op in ("Transpose", "Reshape", "Transpose", "Reshape"):
        node = graph.producer(above, op)
        if node is None:
            return None
        nodes.append(node)
        above = node.inputs[0]
    last, merge, swap, split = nodes

    # Check that they regroup the pixels in this way and no other.
    shape, source = graph.shapes[split.output], graph.shapes[split.inputs[0]]
    if list(last.attributes["perm"]) != [0, 3, 1, 2] or len(source) != 4 or len(shape) != 6:
        return None
    batch, h, p, w, q, channels = shape
    perm = list(swap.attributes["perm"])
    gathers = perm[:3] == [0, 1, 3] and graph.shapes[merge.output] == (batch, h, w, p * q * channels)
    return (split, swap) if gathers and source == (batch, h * p, w * q, channels) else None


def absorb_flatten(graph: Graph) -> None:
    """Reorders the rows of a dense layer's kernel, so that its input need not be transposed before it is flattened."""
    for node in list(graph.nodes.values()):
        if node.op == "Gemm":
            _reorder_rows(graph, node)


def _reorder_rows(graph: Graph, gemm: Node) -> None:
    flatten = graph.producer(gemm.inputs[0], "Reshape")
    transpose = graph.producer(flatten.inputs[0], "Transpose") if flatten is not None else None
    kernel = graph.own_constant(gemm, 1) if transpose is not None else None
    if flatten is None or transpose is None or kernel is None:
        return
    perm, shape = transpose.attributes["perm"], graph.shapes[transpose.output]
    flat = graph.shapes[flatten.output]
    if perm[0] != 0 or flat[0] != shape[0]:
        return

    # `rows[i]` is the row, in JAX's order, of the i-th element in the order in which the tensor is stored.
    order = [perm.index(axis) - 1 for axis in range(1, len(perm))]
    rows = np.arange(kernel.shape[0]).reshape(shape[1:]).transpose(order).reshape(-1)
    inputs = [transpose.inputs[0], flatten.inputs[1]]
    gemm.inputs[0] = graph.add("Reshape", inputs, shape=flat, path=flatten.path)
    graph.set_constant(gemm.inputs[1], kernel[rows])
