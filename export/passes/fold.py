"""Scales and shifts per channel, such as those of batch normalisation, folded into the layers around them."""

from dataclasses import dataclass

import numpy as np

from export.graph import Graph, Node

_LAYERS = ("Conv", "Gemm")
_FAR = 512
"""Larger shifts come first: x - mean is nearly exact where x is near a large mean, scale * x - scale * mean is not."""


@dataclass(frozen=True)
class _Affine:
    """scale * source + shift, with one number or one for each index of axis 1, in float64.

    Attributes:
      length: how many nodes compute it now.
    """

    source: str
    scale: np.ndarray
    shift: np.ndarray
    length: int


def fold_affines(graph: Graph) -> None:
    """Joins each chain of Add, Sub, Mul, Div and Neg with constants, then folds it where it can go.

    That is into the convolution or dense layer above; else into the one below; else it stays as a Mul and an Add.
    """
    for end in [name for name in graph.nodes if _is_end(graph, name)]:
        affine = _chain(graph, end)
        if _is_identity(affine):
            graph.replace(end, affine.source)
        elif not _fold_up(graph, affine, end) and not _fold_down(graph, affine, end):
            _shorten(graph, affine, end)


def pull_factors(graph: Graph) -> None:
    """A (b c) with a constant c becomes (a b) c, where b is smaller than the product: c may then be folded."""
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
    reader = graph.only_consumer(name)
    return _step(graph, name) is not None and (reader is None or _step(graph, reader.output) is None)


def _chain(graph: Graph, end: str) -> _Affine:
    """The longest chain that ends here and that nothing else reads from."""
    name, scale, shift, length = end, np.ones(1), np.zeros(1), 0
    while (step := _step(graph, name)) is not None and (length == 0 or graph.only_consumer(name) is not None):
        if _rounds(shift, scale * step.shift):
            break
        shift = shift + scale * step.shift
        scale = scale * step.scale
        name, length = step.source, length + 1
    return _Affine(name, scale, shift, length)


def _rounds(shift: np.ndarray, other: np.ndarray) -> bool:
    """Whether two large shifts cancel, as in x + 2^23 - 2^23: what that is for is the rounding in between."""
    largest = np.maximum(np.abs(shift), np.abs(other))
    return bool(np.any((largest >= 2**16) & (np.abs(shift + other) < largest * 2**-10)))


def _step(graph: Graph, name: str) -> _Affine | None:
    """One node as an affine; None if it is not."""
    node = graph.producer(name, "Add", "Sub", "Mul", "Div", "Neg")
    if node is None:
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op == "Neg":
        return _Affine(node.inputs[0], -one, zero, 1)
    left, right = node.inputs
    source, constant = (left, right) if right in graph.constants else (right, left)
    vector = _per_channel(graph, constant, len(graph.shapes[name]))
    if vector is None or source in graph.constants or graph.shapes[source] != graph.shapes[name]:
        return None
    if node.op == "Add":
        return _Affine(source, one, vector, 1)
    if node.op == "Mul":
        return _Affine(source, vector, zero, 1)
    if node.op == "Sub":
        return _Affine(source, one, -vector, 1) if source == left else _Affine(source, -one, vector, 1)
    return _Affine(source, 1 / vector, zero, 1) if source == left and np.all(vector) else None


def _per_channel(graph: Graph, name: str, rank: int) -> np.ndarray | None:
    array = graph.constants.get(name)
    if array is None or array.dtype != np.float32 or rank < 2:
        return None
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return full.reshape(-1).astype(np.float64) if full.size == full.shape[1] else None


def _is_identity(affine: _Affine) -> bool:
    return np.allclose(affine.scale, 1, rtol=0, atol=1e-7) and not np.any(affine.shift)


def _layer(graph: Graph, node: Node | None) -> bool:
    """Whether it is a layer whose kernel is its own to change."""
    if node is None or node.op not in _LAYERS:
        return False
    return all(graph.own_constant(node, i) is not None for i in range(1, len(node.inputs)))


def _fold_up(graph: Graph, affine: _Affine, end: str) -> bool:
    """Into the layer that computes the source."""
    layer = graph.producer(affine.source)
    if layer is None or not _layer(graph, layer) or graph.only_consumer(affine.source) is None:
        return False
    kernel, bias = _weights(graph, layer)
    along = (-1,) + (1,) * (kernel.ndim - 1) if layer.op == "Conv" else (1, -1)
    if not _set_weights(graph, layer, kernel * affine.scale.reshape(along), bias * affine.scale + affine.shift):
        return False
    graph.replace(end, affine.source)
    return True


def _fold_down(graph: Graph, affine: _Affine, end: str) -> bool:
    """Into the layer that alone reads the chain's end, or the chain's end resized: the weights of a Resize sum to one.

    A convolution pads its input with zeros, so a shift cannot move past its padding, and a far one would cost
    precision: then only the scale goes, and x * scale + shift becomes x + shift / scale.
    """
    reader = graph.only_consumer(end)
    resize = reader if reader is not None and reader.op == "Resize" else None
    layer = reader if resize is None else graph.only_consumer(resize.output)
    if reader is None or layer is None or not _layer(graph, layer):
        return False
    stays = _is_far(affine.shift) or (any(layer.attributes.get("pads", ())) and bool(np.any(affine.shift)))
    if stays and (np.all(affine.scale == 1) or not np.all(affine.scale)):
        return False
    kernel, bias = _weights(graph, layer)
    scaled, response = _apply_to_inputs(layer, kernel, affine)
    if not _set_weights(graph, layer, scaled, bias if stays else bias + response):
        return False
    source = affine.source
    if stays:
        source = _emit(graph, "Add", source, affine.shift / affine.scale, end)
    reader.inputs[0] = source
    if resize is not None:
        graph.origins.pop(resize.output, None)
    return True


def _apply_to_inputs(layer: Node, kernel: np.ndarray, affine: _Affine) -> tuple[np.ndarray, np.ndarray]:
    """The kernel with its inputs scaled, and each output's response to the shift alone."""
    if layer.op == "Gemm":
        size = kernel.shape[0]
        shift = np.broadcast_to(affine.shift, size)
        return kernel * np.broadcast_to(affine.scale, size)[:, None], shift @ kernel
    groups = layer.attributes["group"]
    outputs, inputs, *window = kernel.shape
    along = (groups, 1, inputs, *[1] * len(window))
    grouped = kernel.reshape(groups, outputs // groups, inputs, *window)
    scale = np.broadcast_to(affine.scale, groups * inputs).reshape(along)
    shift = np.broadcast_to(affine.shift, groups * inputs).reshape(along)
    response = (grouped * shift).reshape(outputs, -1).sum(axis=1)
    return (grouped * scale).reshape(kernel.shape), response


def _weights(graph: Graph, layer: Node) -> tuple[np.ndarray, np.ndarray]:
    kernel = graph.constants[layer.inputs[1]].astype(np.float64)
    if len(layer.inputs) > 2:
        return kernel, graph.constants[layer.inputs[2]].astype(np.float64)
    return kernel, np.zeros(kernel.shape[0 if layer.op == "Conv" else 1])


def _set_weights(graph: Graph, layer: Node, kernel: np.ndarray, bias: np.ndarray) -> bool:
    """Changes a layer's weights, unless they would leave float32's range."""
    limit = np.finfo(np.float32).max
    if not (np.all(np.abs(kernel) < limit) and np.all(np.abs(bias) < limit)):
        return False
    graph.set_constant(layer.inputs[1], kernel.astype(np.float32))
    if len(layer.inputs) > 2:
        graph.set_constant(layer.inputs[2], bias.astype(np.float32))
    elif np.any(bias):
        layer.inputs.append(graph.add_constant(bias.astype(np.float32), f"{layer.path}bias"))
    return True


def _shorten(graph: Graph, affine: _Affine, end: str) -> None:
    """One Mul and one Add, where the chain is longer than that; a far shift comes first."""
    scale, shift, first = affine.scale, affine.shift, np.zeros(1)
    if _is_far(shift) and np.all(scale):
        shift, first = first, shift / scale
    steps = [("Add", first), ("Mul", scale), ("Add", shift)]
    steps = [(op, vector) for op, vector in steps if np.any(vector != (op == "Mul"))]
    if affine.length > len(steps) and all(_is_float32(vector) for _, vector in steps):
        name = affine.source
        for op, vector in steps:
            name = _emit(graph, op, name, vector, end)
        graph.replace(end, name)


def _is_far(shift: np.ndarray) -> bool:
    return bool(np.any(np.abs(shift) > _FAR))


def _is_float32(vector: np.ndarray) -> bool:
    """Whether all are zero or in the range of float32, where they keep their precision."""
    size, limits = np.abs(vector), np.finfo(np.float32)
    return bool(np.all((size == 0) | ((size >= limits.tiny) & (size <= limits.max))))


def _emit(graph: Graph, op: str, source: str, vector: np.ndarray, like: str) -> str:
    shape, path = graph.shapes[like], graph.nodes[like].path
    array = vector.astype(np.float32)
    array = array.reshape(()) if array.size == 1 else array.reshape(1, -1, *[1] * (len(shape) - 2))
    constant = graph.add_constant(array, f"{path}{'scale' if op == 'Mul' else 'shift'}")
    return graph.add(op, [source, constant], shape=shape, path=path)
