"""Folding of scales and shifts per channel, such as batch normalisation, into the layers around them."""

from dataclasses import dataclass

import numpy as np

from export.graph import Graph, Node

_LAYERS = ("Conv", "Gemm")
_FAR = 512
"""Largest shift that is applied after the scale. Near a large mean, x - mean is nearly exact; scale * x - scale * mean
would lose digits."""


@dataclass(frozen=True)
class Affine:
    """The value scale * source + shift.

    Attributes:
      source: name of a value.
      scale: float64 vector with one element, or one for each index of axis 1.
      shift: as `scale`.
      length: number of nodes that compute the value now.
    """

    source: str
    scale: np.ndarray
    shift: np.ndarray
    length: int


def fold_affines(graph: Graph) -> None:
    """Joins each chain of Add, Sub, Mul, Div and Neg with constants and folds it into a layer.

    A chain goes into the convolution or dense layer that computes its source, else into the one that reads its end,
    else it becomes one Mul and one Add.
    """
    for end in [name for name in graph.nodes if _is_end(graph, name)]:
        affine = affine_chain(graph, end)
        if _is_identity(affine):
            graph.replace(end, affine.source)
        elif not _fold_up(graph, affine, end) and not _fold_down(graph, affine, end):
            _shorten(graph, affine, end)


def pull_factors(graph: Graph) -> None:
    """Rewrites a * (b * c) with a constant c as (a * b) * c, so that c can be folded.

    Only where b has fewer elements than the product, as the gate of a squeeze-and-excitation: else b * c is as cheap.
    """
    for node in list(graph.nodes.values()):
        if node.op == "Mul":
            _pull_factor(graph, node)


def _pull_factor(graph: Graph, node: Node) -> None:
    for left, right in (node.inputs, node.inputs[::-1]):
        inner = graph.producer(right, "Mul")
        if inner is None or graph.only_consumer(right) is not node or graph.shapes[left] != graph.shapes[node.output]:
            continue
        for small, factor in (inner.inputs, inner.inputs[::-1]):
            if factor in graph.constants and small not in graph.constants and _is_smaller(graph, small, right):
                shape = graph.shapes[node.output]
                node.inputs = [graph.add("Mul", [left, small], shape=shape, path=node.path), factor]
                return


def _is_smaller(graph: Graph, name: str, other: str) -> bool:
    shape, wide = graph.shapes[name], graph.shapes[other]
    return len(shape) == len(wide) and shape != wide


def _is_end(graph: Graph, name: str) -> bool:
    """Returns whether a chain ends at a value: it is a step, and no step is its only reader."""
    # Readers are looked up last, among all nodes: unrolled loops have many thousands.
    if affine_step(graph, name) is None:
        return False
    reader = graph.only_consumer(name)
    return reader is None or affine_step(graph, reader.output) is None


def affine_chain(graph: Graph, end: str) -> Affine:
    """Returns the longest chain that ends at a value and whose inner values nothing else reads."""
    # From the end upwards: scale * (step.scale * x + step.shift) + shift.
    name, scale, shift, length = end, np.ones(1), np.zeros(1), 0
    while (step := affine_step(graph, name)) is not None and (length == 0 or graph.only_consumer(name) is not None):
        if _rounds(shift, scale * step.shift):
            break
        shift = shift + scale * step.shift
        scale = scale * step.scale
        name, length = step.source, length + 1
    return Affine(name, scale, shift, length)


def _rounds(shift: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two large shifts nearly cancel, as in x + 2^23 - 2^23, which is written to round x."""
    largest = np.maximum(np.abs(shift), np.abs(other))
    return bool(np.any((largest >= 2**16) & (np.abs(shift + other) < largest * 2**-10)))


def affine_step(graph: Graph, name: str) -> Affine | None:
    """Returns the node that computes a value as an affine step, or None if it is something else."""
    node = graph.producer(name, "Add", "Sub", "Mul", "Div", "Neg")
    if node is None:
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op == "Neg":
        return Affine(node.inputs[0], -one, zero, 1)
    # One operand is a number or a vector of channels, the other has the shape of the result.
    left, right = node.inputs
    source, constant = (left, right) if right in graph.constants else (right, left)
    vector = _per_channel(graph, constant, len(graph.shapes[name]))
    if vector is None or source in graph.constants or graph.shapes[source] != graph.shapes[name]:
        return None
    if node.op == "Add":
        return Affine(source, one, vector, 1)
    if node.op == "Mul":
        return Affine(source, vector, zero, 1)
    if node.op == "Sub":
        return Affine(source, one, -vector, 1) if source == left else Affine(source, -one, vector, 1)
    return Affine(source, 1 / vector, zero, 1) if source == left and np.all(vector) else None


def _per_channel(graph: Graph, name: str, rank: int) -> np.ndarray | None:
    """Returns a constant as a float64 vector over axis 1, or None if it varies along another axis."""
    array = graph.constants.get(name)
    if array is None or array.dtype != np.float32 or rank < 2:
        return None
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return full.reshape(-1).astype(np.float64) if full.size == full.shape[1] else None


def _is_identity(affine: Affine) -> bool:
    return np.allclose(affine.scale, 1, rtol=0, atol=1e-7) and not np.any(affine.shift)


def _is_layer(graph: Graph, node: Node | None) -> bool:
    """Returns whether a node is a convolution or dense layer whose weights nothing else reads."""
    if node is None or node.op not in _LAYERS:
        return False
    return all(graph.own_constant(node, i) is not None for i in range(1, len(node.inputs)))


def _fold_up(graph: Graph, affine: Affine, end: str) -> bool:
    """Folds a chain into the layer that computes its source; returns whether it could."""
    layer = graph.producer(affine.source)
    if layer is None or not _is_layer(graph, layer) or graph.only_consumer(affine.source) is None:
        return False
    kernel, bias = _weights(graph, layer)
    along = (-1,) + (1,) * (kernel.ndim - 1) if layer.op == "Conv" else (1, -1)
    if not _set_weights(graph, layer, kernel * affine.scale.reshape(along), bias * affine.scale + affine.shift):
        return False
    graph.replace(end, affine.source)
    return True


def _fold_down(graph: Graph, affine: Affine, end: str) -> bool:
    """Folds a chain into the layer that alone reads its end, directly or resized; returns whether it could.

    A Resize may lie in between because its weights sum to one. A shift stays before the layer, as shift / scale before
    the scale, if the layer pads: padding adds zeros, not shifted ones. It also stays if it is so large that the layer
    would lose digits.
    """
    # Find the layer.
    reader = graph.only_consumer(end)
    resize = reader if reader is not None and reader.op == "Resize" else None
    layer = reader if resize is None else graph.only_consumer(resize.output)
    if reader is None or layer is None or not _is_layer(graph, layer):
        return False

    # Decide whether the shift stays; then the scale alone moves, unless that changes nothing or cannot be undone.
    stays = _is_far(affine.shift) or (any(layer.attributes.get("pads", ())) and bool(np.any(affine.shift)))
    if stays and (np.all(affine.scale == 1) or not np.all(affine.scale)):
        return False

    # Change the weights, then what the layer reads.
    kernel, bias = _weights(graph, layer)
    scaled, response = _apply_to_inputs(layer, kernel, affine)
    if not _set_weights(graph, layer, scaled, bias if stays else bias + response):
        return False
    source = affine.source
    if stays:
        source = _emit(graph, "Add", source, affine.shift / affine.scale, end)
    reader.inputs[0] = source
    if resize is not None:
        # The resized values now lack the scale.
        graph.origins.pop(resize.output, None)
    return True


def _apply_to_inputs(layer: Node, kernel: np.ndarray, affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Returns a layer's kernel with scaled inputs, and the response of each output to the shift alone."""
    if layer.op == "Gemm":
        size = kernel.shape[0]
        shift = np.broadcast_to(affine.shift, size)
        return kernel * np.broadcast_to(affine.scale, size)[:, None], shift @ kernel
    # Kernel [groups * outputs, inputs, *window]; each group has its own part of the input channels.
    groups = layer.attributes["group"]
    outputs, inputs, *window = kernel.shape
    along = (groups, 1, inputs, *[1] * len(window))
    grouped = kernel.reshape(groups, outputs // groups, inputs, *window)
    scale = np.broadcast_to(affine.scale, groups * inputs).reshape(along)
    shift = np.broadcast_to(affine.shift, groups * inputs).reshape(along)
    response = (grouped * shift).reshape(outputs, -1).sum(axis=1)
    return (grouped * scale).reshape(kernel.shape), response


def _weights(graph: Graph, layer: Node) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias of a layer in float64."""
    kernel = graph.constants[layer.inputs[1]].astype(np.float64)
    if len(layer.inputs) > 2:
        return kernel, graph.constants[layer.inputs[2]].astype(np.float64)
    return kernel, np.zeros(kernel.shape[0 if layer.op == "Conv" else 1])


def _set_weights(graph: Graph, layer: Node, kernel: np.ndarray, bias: np.ndarray) -> bool:
    """Sets kernel and bias of a layer, unless they leave the range of float32; returns whether they did not."""
    limit = np.finfo(np.float32).max
    if not (np.all(np.abs(kernel) < limit) and np.all(np.abs(bias) < limit)):
        return False
    # A kernel that stays as it is shares its memory with the other steps of an unrolled loop.
    if not np.array_equal(kernel, graph.constants[layer.inputs[1]]):
        graph.set_constant(layer.inputs[1], kernel.astype(np.float32))
    if len(layer.inputs) > 2:
        graph.set_constant(layer.inputs[2], bias.astype(np.float32))
    elif np.any(bias):
        layer.inputs.append(graph.add_constant(bias.astype(np.float32), f"{layer.path}bias"))
    return True


def _shorten(graph: Graph, affine: Affine, end: str) -> None:
    """Replaces a chain by one Mul and one Add if it is longer; a large shift is added before the multiplication."""
    scale, shift, first = affine.scale, affine.shift, np.zeros(1)
    if _is_far(shift) and np.all(scale):
        shift, first = first, shift / scale
    steps = [("Add", first), ("Mul", scale), ("Add", shift)]
    steps = [(op, vector) for op, vector in steps if np.any(vector != (op == "Mul"))]
    if affine.length > len(steps) and all(is_float32(vector) for _, vector in steps):
        name = affine.source
        for op, vector in steps:
            name = _emit(graph, op, name, vector, end)
        graph.replace(end, name)


def _is_far(shift: np.ndarray) -> bool:
    return bool(np.any(np.abs(shift) > _FAR))


def is_float32(vector: np.ndarray) -> bool:
    """Returns whether all elements are zero or normal numbers of float32, which keep their precision."""
    size, limits = np.abs(vector), np.finfo(np.float32)
    return bool(np.all((size == 0) | ((size >= limits.tiny) & (size <= limits.max))))


def _emit(graph: Graph, op: str, source: str, vector: np.ndarray, like: str) -> str:
    """Adds a Mul or Add of a vector of channels, with the shape and path of the value `like`; Neg for a factor of -1.

    Neg has the type of its operand, and a chain of it alone may be one of integers.
    """
    shape, path = graph.shapes[like], graph.nodes[like].path
    if op == "Mul" and np.all(vector == -1):
        return graph.add("Neg", [source], shape=shape, path=path)
    array = vector.astype(np.float32)
    array = array.reshape(()) if array.size == 1 else array.reshape(1, -1, *[1] * (len(shape) - 2))
    constant = graph.add_constant(array, f"{path}{'scale' if op == 'Mul' else 'shift'}")
    return graph.add(op, [source, constant], shape=shape, path=path)
