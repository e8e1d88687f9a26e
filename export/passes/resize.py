"""Resizing: `jax.image.resize` multiplies rows and columns with matrices of weights, which one Resize can replace."""

import numpy as np

from export.graph import Graph, Node
from export.passes.layout import hoistable_chain, transposed, variable_input

_CHANNELS_FIRST, _CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_PIXELS = {2, 3}
"""Axes of rows and columns when channels are first, the only axes that every runtime resizes."""


def multiply_channels_first(graph: Graph) -> None:
    """Moves a Transpose to channels-first from below products with matrices to above them.

    Before the products the feature map is still small. A Transpose back to channels-last is added below, where it meets
    the old one, and `hoist_transposes` cancels both.
    """
    for node in list(graph.nodes.values()):
        if node.op == "Transpose" and list(node.attributes["perm"]) == _CHANNELS_FIRST:
            _multiply_below(graph, node)


def _multiply_below(graph: Graph, transpose: Node) -> None:
    # Find the products, and where their axes are in channels-first order.
    passed = hoistable_chain(graph, transpose.inputs[0])
    end = variable_input(graph, passed[-1]) if passed else transpose.inputs[0]
    source, products = _products(graph, end)
    matrices = {_CHANNELS_FIRST.index(axis): matrix for axis, matrix in products.items()}
    if not matrices or not set(matrices) <= _PIXELS or graph.only_consumer(end) is None:
        return

    # Multiply again in channels-first order: rows from the left, columns from the right.
    path = graph.nodes[end].path
    name = transposed(graph, source, _CHANNELS_FIRST, path)
    shape = list(graph.shapes[name])
    for axis, matrix in reversed(matrices.items()):
        shape[axis] = len(matrix)
        constant = graph.add_constant(matrix if axis == 2 else matrix.T, f"{path}kernel")
        inputs = [constant, name] if axis == 2 else [name, constant]
        name = graph.add("MatMul", inputs, shape=tuple(shape), path=path)
    graph.replace(end, transposed(graph, name, _CHANNELS_LAST, path))


def fuse_resize(graph: Graph) -> None:
    """Fuses products along rows and columns that interpolate linearly into one Resize.

    Cubic, Lanczos and antialiased weights stay products: the Resize of this operator set has other ones.
    """
    while any(_fuse(graph, node) for node in reversed(graph.sorted_nodes())):
        graph.prune()


def _fuse(graph: Graph, end: Node) -> bool:
    source, matrices = _products(graph, end.output)
    if not matrices or not set(matrices) <= _PIXELS or not all(map(_is_linear, matrices.values())):
        return False
    # Give scales, not sizes: sizes would include the batch, which may be symbolic.
    shape, scales = list(graph.shapes[source]), np.ones(4, np.float32)
    for axis, matrix in matrices.items():
        shape[axis], old = matrix.shape
        scales[axis] = shape[axis] / old
        # Runtimes round the new size down.
        if float(scales[axis]) * old < shape[axis]:
            scales[axis] = np.nextafter(scales[axis], np.float32(np.inf))
    end.op, end.inputs = "Resize", [source, "", graph.add_constant(scales, f"{end.path}scales")]
    end.attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return True


def _products(graph: Graph, end: str) -> tuple[str, dict[int, np.ndarray]]:
    """Returns source and matrices by axis (the last first) of the longest chain of products that ends at a value."""
    matrices: dict[int, np.ndarray] = {}
    name = end
    while (node := graph.producer(name, "Conv", "MatMul")) is not None:
        axis, matrix = _product(graph, node)
        if matrix is None or axis in matrices or (matrices and graph.only_consumer(name) is None):
            break
        matrices[axis] = matrix
        name = variable_input(graph, node)
    return name, matrices


def _product(graph: Graph, node: Node) -> tuple[int, np.ndarray | None]:
    """Returns the axis along which a node multiplies, and its matrix [new, old]; None if it does not multiply."""
    constants = [graph.constants.get(name) for name in node.inputs]
    if len(graph.shapes[node.output]) != 4 or len(constants) != 2:
        return 0, None
    # The rule of dot_general makes a 1x1 convolution for channels, and MatMul for rows and columns.
    left, right = constants
    if node.op == "Conv" and left is None and right is not None and _mixes_channels(node):
        return 1, right[:, :, 0, 0]
    if node.op == "MatMul" and left is not None and left.ndim == 2:
        return 2, left
    if node.op == "MatMul" and right is not None and right.ndim == 2:
        return 3, right.T
    return 0, None


def _mixes_channels(conv: Node) -> bool:
    """Returns whether a convolution only multiplies the channels of each pixel with a matrix."""
    plain = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "group": 1}
    return all(conv.attributes[name] == value for name, value in plain.items())


def _is_linear(matrix: np.ndarray) -> bool:
    """Returns whether a matrix holds the weights of linear interpolation between pixel centres, up to rounding."""
    new, old = matrix.shape
    positions = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(old)))
    rounding = 2 * old * np.finfo(np.float32).eps  # `float32`'s rounding of a position
    return new != old and matrix.dtype == np.float32 and np.allclose(matrix, weights, rtol=0, atol=rounding)
