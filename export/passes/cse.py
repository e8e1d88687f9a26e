"""Common subexpression elimination."""

import hashlib

from export.graph import Graph, Node

_SMALL = 64
"""Largest number of elements of constants that are compared; larger ones are equal only if they have the same name."""


def merge_common_subexpressions(graph: Graph) -> None:
    """Keeps the first of several nodes with the same operator, operands and attributes."""
    first: dict[object, str] = {}
    for node in graph.sorted_nodes():
        kept = first.setdefault(_key(graph, node), node.output)
        if kept != node.output:
            graph.replace(node.output, kept)


def _key(graph: Graph, node: Node) -> object:
    operands = tuple(_content(graph, name) for name in node.inputs)
    return node.op, operands, node.position, repr(sorted(node.attributes.items()))


def _content(graph: Graph, name: str) -> object:
    array = graph.constants.get(name)
    return name if array is None or array.size > _SMALL else (array.dtype.str, array.shape, array.tobytes())


def merge_weights(graph: Graph) -> None:
    """Keeps the first of several equal arrays of weights, of which an unrolled loop has one for each step.

    This comes last: other passes change weights only if a single layer reads them.
    """
    first: dict[object, str] = {}
    kept = {
        name: first.setdefault((array.dtype.str, array.shape, hashlib.sha256(array).digest()), name)
        for name, array in graph.constants.items()
        if array.ndim > 1 and array.size > _SMALL
    }
    for node in graph.nodes.values():
        node.inputs = [kept.get(name, name) for name in node.inputs]
