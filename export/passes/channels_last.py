"""Layer normalisation of maps with the channels last, where runtimes have one operator for it."""

import numpy as np

from export.graph import Graph, Node
from export.passes.fold import Affine, affine_chain, affine_step, is_float32
from export.passes.layout import transposed
from export.passes.moments import Normalisation, layer_norm

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def normalise_channels_last(graph: Graph) -> None:
    """Computes the layer normalisation of maps over their channels between two Transposes, with scale and shift.

    onnxruntime fuses it to LayerNormalization in this form only: over the last axis, times a scale, plus a shift. It
    joins the Transposes to the change of layout that its convolutions make anyway.
    """
    for node in list(graph.nodes.values()):
        found = layer_norm(graph, node) if node.op == "Div" else None
        if found is None or found.axes != [1] or len(graph.shapes[node.output]) != 4:
            continue
        end = _end(graph, node)
        affine = affine_chain(graph, end) if end != node.output else Affine(end, np.ones(1), np.zeros(1), 0)
        if affine.source == node.output and is_float32(affine.scale) and is_float32(affine.shift):
            graph.replace(end, _normalise(graph, found, affine, node.path))


def _end(graph: Graph, node: Node) -> str:
    """Returns the last value of the chain of affine steps after a node."""
    end = node.output
    while (reader := graph.only_consumer(end)) is not None and affine_step(graph, reader.output) is not None:
        end = reader.output
    return end


def _normalise(graph: Graph, norm: Normalisation, affine: Affine, path: str) -> str:
    """Adds the normalisation of a map with its scale and shift, and returns the name of the result."""
    value = transposed(graph, norm.difference.inputs[0], _TO_LAST, path)
    shape = graph.shapes[value]
    kept, channels = (*shape[:3], 1), shape[3]

    def vector(array: np.ndarray, label: str) -> str:
        return graph.add_constant(np.broadcast_to(array, channels).astype(np.float32), path + label)

    mean = graph.add("ReduceMean", [value], shape=kept, path=path, axes=[3], keepdims=1)
    difference = graph.add("Sub", [value, mean], shape=shape, path=path)
    two = graph.add_constant(np.array(2, np.float32), f"{path}two")
    square = graph.add("Pow", [difference, two], shape=shape, path=path)
    variance = graph.add("ReduceMean", [square], shape=kept, path=path, axes=[3], keepdims=1)
    shifted = graph.add("Add", [variance, norm.epsilon], shape=kept, path=path)
    deviation = graph.add("Sqrt", [shifted], shape=kept, path=path)
    quotient = graph.add("Div", [difference, deviation], shape=shape, path=path)
    scaled = graph.add("Mul", [quotient, vector(affine.scale, "scale")], shape=shape, path=path)
    result = graph.add("Add", [scaled, vector(affine.shift, "shift")], shape=shape, path=path)
    return transposed(graph, result, _TO_FIRST, path)
