"""Fusion of means, and of normalisation by mean and variance, into the forms that runtimes optimize."""

import math
from typing import NamedTuple

import numpy as np

from export.graph import Graph, Node, Shape


def fuse_mean(graph: Graph) -> None:
    """Fuses a sum divided by its number of elements, and a Reshape that puts the axes back, into ReduceMean."""
    for node in list(graph.nodes.values()):
        if node.op not in ("Div", "Mul"):
            continue
        # The sum, with or without a Reshape that restores the reduced axes.
        total, factor = graph.producer(node.inputs[0], "ReduceSum"), graph.scalar(node.inputs[1])
        kept = _put_back(graph, node.inputs[0])
        total = total or kept
        if total is None or total.op != "ReduceSum" or not factor:
            continue

        # Its number of elements must be known and equal to the divisor.
        axes = _axes(graph, total)
        sizes = [graph.shapes[total.inputs[0]][axis] for axis in axes]
        count = factor if node.op == "Div" else 1 / factor
        aligned = graph.shapes[node.output] == graph.shapes[node.inputs[0]]
        if not aligned or not all(isinstance(size, int) for size in sizes):
            continue
        if np.isclose(math.prod(sizes), count, rtol=1e-6, atol=0):
            keepdims = total.attributes["keepdims"] if kept is None else 1
            node.op, node.inputs = "ReduceMean", [total.inputs[0]]
            node.attributes = {"axes": axes, "keepdims": keepdims}


def keep_reduced_axes(graph: Graph) -> None:
    """Makes a reduction keep its axes (`keepdims`) if a Reshape puts them back."""
    for node in list(graph.nodes.values()):
        reduction = _put_back(graph, node.output)
        if reduction is not None and graph.only_consumer(reduction.output) is node:
            node.op, node.inputs = reduction.op, list(reduction.inputs)
            node.attributes = reduction.attributes | {"keepdims": 1}


def _put_back(graph: Graph, name: str) -> Node | None:
    """Returns the reduction whose axes a Reshape puts back with size 1 to make this value, or None."""
    node = graph.producer(name, "Reshape")
    reduction = graph.producer(node.inputs[0]) if node is not None else None
    if reduction is None or not reduction.op.startswith("Reduce") or reduction.attributes["keepdims"]:
        return None
    shape, axes = graph.shapes[reduction.inputs[0]], _axes(graph, reduction)
    kept = tuple(1 if i in axes else dim for i, dim in enumerate(shape))
    return reduction if graph.shapes[name] == kept else None


def _axes(graph: Graph, reduction: Node) -> list[int]:
    axes = reduction.attributes.get("axes")
    return list(graph.constants[reduction.inputs[1]].tolist() if axes is None else axes)


def fuse_layer_norm(graph: Graph) -> None:
    """Rewrites layer normalisation as (x - m) / sqrt(mean((x - m)^2) + e) with Pow, the form that runtimes fuse.

    By default Flax computes (x - m) * (1 / sqrt(max(0, mean(x^2) - m^2) + e)). The value is the same, but the
    difference of two means takes more operators and has larger rounding errors.
    """
    for node in list(graph.nodes.values()):
        found = layer_norm(graph, node)
        if found is None:
            continue
        difference, epsilon, axes = found
        shape, path = graph.shapes[difference.output], node.path
        # Pow, not x * x: runtimes recognise the pattern of PyTorch's exporter.
        two = graph.add_constant(np.array(2, np.float32), f"{path}two")
        square = graph.add("Pow", [difference.output, two], shape=shape, path=path)
        reduced = tuple(1 if i in axes else dim for i, dim in enumerate(shape))
        mean = graph.add("ReduceMean", [square], shape=reduced, path=path, axes=axes, keepdims=1)
        shifted = graph.add("Add", [mean, epsilon], shape=reduced, path=path)
        deviation = graph.add("Sqrt", [shifted], shape=reduced, path=path)
        node.op, node.inputs = "Div", [difference.output, deviation]


class Normalisation(NamedTuple):
    """A layer normalisation.

    Attributes:
      difference: from the mean.
      epsilon: the name of the constant that is added to the variance.
      axes: of the mean and the variance.
    """

    difference: Node
    epsilon: str
    axes: list[int]


def layer_norm(graph: Graph, node: Node) -> Normalisation | None:
    """Returns the layer normalisation that ends in this node, or None if the node is something else."""
    for dividend, divisor, spread_divisor in _quotients(graph, node):
        # (x - mean) / sqrt(variance + epsilon)
        difference = graph.producer(dividend, "Sub")
        root = graph.producer(_before_reshapes(graph, divisor), "Sqrt")
        shifted = graph.producer(root.inputs[0], "Add") if root is not None else None
        mean = _kept_mean(graph, difference.inputs[1]) if difference is not None else None
        if difference is None or shifted is None or mean is None:
            continue

        # Mean and variance must be of x, along the same axes, and keep them.
        value, axes = difference.inputs[0], _axes(graph, mean)
        epsilon = shifted.inputs[1]
        kept = tuple(1 if i in axes else dim for i, dim in enumerate(graph.shapes[value]))
        aligned = graph.shapes[spread_divisor] == kept and graph.shapes[difference.output] == graph.shapes[value]
        if mean.inputs[0] != value or not aligned or graph.scalar(epsilon) is None:
            continue
        spread = graph.producer(shifted.inputs[0], "Reshape")
        is_fast = spread is not None and _is_fast_variance(graph, spread.inputs[0], value, mean)
        if is_fast or _is_variance(graph, shifted.inputs[0], difference, axes):
            return Normalisation(difference, epsilon, axes)
    return None


def _quotients(graph: Graph, node: Node) -> list[tuple[str, str, str]]:
    """Returns the ways to read a node as a division, a Mul by a Reciprocal included.

    Returns:
      Dividend, divisor, and the operand that holds the divisor or its reciprocal, reshaped or not.
    """
    if node.op == "Div":
        return [(node.inputs[0], node.inputs[1], node.inputs[1])]
    pairs = (node.inputs, node.inputs[::-1]) if node.op == "Mul" else ()
    inverses = [(left, graph.producer(_before_reshapes(graph, right), "Reciprocal"), right) for left, right in pairs]
    return [(left, inverse.inputs[0], right) for left, inverse, right in inverses if inverse is not None]


def _kept_mean(graph: Graph, name: str) -> Node | None:
    """Returns the ReduceMean whose result, with the reduced axes in place, is this value, or None."""
    node = graph.producer(name, "ReduceMean")
    if node is not None and node.attributes["keepdims"]:
        return node
    mean = _put_back(graph, name)
    return mean if mean is not None and mean.op == "ReduceMean" else None


def _is_variance(graph: Graph, name: str, difference: Node, axes: list[int]) -> bool:
    """Returns whether a value is the mean of the squares of a difference, along these axes, reshaped or not."""
    mean = graph.producer(_before_reshapes(graph, name), "ReduceMean")
    squared = graph.producer(mean.inputs[0], "Mul", "Pow") if mean is not None else None
    if mean is None or squared is None or _axes(graph, mean) != axes:
        return False
    is_product = squared.op == "Mul" and squared.inputs[1] == difference.output
    return squared.inputs[0] == difference.output and (is_product or graph.scalar(squared.inputs[1]) == 2)


def _is_fast_variance(graph: Graph, name: str, value: str, mean: Node) -> bool:
    """Returns whether a value is max(0, mean(x^2) - mean(x)^2), along the axes of the given mean of x."""
    bounded = graph.producer(name, "Relu")
    difference = graph.producer(bounded.inputs[0], "Sub") if bounded is not None else None
    if difference is None:
        return False
    squares, square = graph.producer(difference.inputs[0], "ReduceMean"), graph.producer(difference.inputs[1], "Mul")
    if squares is None or square is None or square.inputs != [mean.output] * 2:
        return False
    squared = graph.producer(squares.inputs[0], "Mul")
    same = squares.attributes == mean.attributes
    return same and squared is not None and squared.inputs == [value] * 2


def fuse_group_norm(graph: Graph) -> None:
    """Rewrites group normalisation as InstanceNormalization of [batch, groups, elements], each group as one channel.

    Few runtimes have GroupNormalization, which came with operator set 18.
    """
    for node in list(graph.nodes.values()):
        found = _group_norm(graph, node) if node.op == "Mul" else None
        if found is None:
            continue
        value, groups, epsilon, scale = found
        shape, path = graph.shapes[value], node.path

        # Normalise the groups without scale and shift: these are per channel, and InstanceNormalization's per group.
        constants = {"shape": np.array([0, groups, -1]), "ones": np.ones(groups), "zeros": np.zeros(groups)}
        dtypes = {"shape": np.int64, "ones": np.float32, "zeros": np.float32}
        sizes, ones, zeros = (
            graph.add_constant(array.astype(dtypes[key]), path + key) for key, array in constants.items()
        )
        flat = (shape[0], groups, math.prod(shape[1:]) // groups)
        split = graph.add("Reshape", [value, sizes], shape=flat, path=path)
        norm = graph.add("InstanceNormalization", [split, ones, zeros], shape=flat, path=path, epsilon=epsilon)

        # Restore the shape; the Mul that ended the normalisation now applies the scale.
        whole = graph.add_constant(np.array([-1, *shape[1:]], np.int64), f"{path}shape")
        joined = graph.add("Reshape", [norm, whole], shape=shape, path=path)
        per_channel = scale.reshape(-1, *[1] * (len(shape) - 2))
        node.inputs = [joined, graph.add_constant(per_channel.astype(np.float32), f"{path}scale")]


def _group_norm(graph: Graph, product: Node) -> tuple[str, int, float, np.ndarray] | None:
    """Matches a group normalisation that ends in this Mul.

    Returns:
      The name of the value, the number of groups, the epsilon that is added to the variance, and the scale, one number
      or one for each channel; None if the Mul is something else.
    """
    for left, right in (product.inputs, product.inputs[::-1]):
        # (x - mean) * (1 / sqrt(variance + epsilon) * scale)
        difference, scale = graph.producer(left, "Sub"), np.ones(1)
        inverse = graph.producer(_before_reshapes(graph, right), "Reciprocal", "Mul")
        if inverse is not None and inverse.op == "Mul":
            scale = _along_last(graph.constants.get(inverse.inputs[1], np.zeros(0)), graph.shapes[inverse.output])
            inverse = graph.producer(_before_reshapes(graph, inverse.inputs[0]), "Reciprocal")
        root = graph.producer(inverse.inputs[0], "Sqrt") if inverse is not None else None
        shifted = graph.producer(root.inputs[0], "Add") if root is not None else None
        epsilon = graph.scalar(shifted.inputs[1]) if shifted is not None else None
        if difference is None or shifted is None or epsilon is None:
            continue

        # Mean and factor have one number for each channel.
        value, offset = difference.inputs
        shape = graph.shapes[value]
        per_channel = (*shape[:2], *[1] * (len(shape) - 2))
        if graph.shapes[offset] != per_channel or graph.shapes[right] != per_channel:
            continue

        # Both are repeated from one number for each group, and taken over the elements of the group.
        mean, variance = _per_group(graph, offset), _per_group(graph, shifted.inputs[0])
        node = graph.producer(mean, "ReduceMean") if mean is not None else None
        groups = _split_groups(graph, node, value) if node is not None else None
        if node is None or variance is None or groups is None or scale.size not in (1, shape[1]):
            continue
        if _is_fast_variance(graph, variance, node.inputs[0], node):
            return value, groups, epsilon, scale
    return None


def _along_last(scale: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns a scale that varies at most along the last axis of `shape` that is not 1, else an empty array."""
    last = max((axis for axis, dim in enumerate(shape) if dim != 1), default=0)
    is_along = scale.size <= 1 or scale.shape[last - len(shape)] == scale.size
    return scale if is_along else np.zeros(0)


def _before_reshapes(graph: Graph, name: str) -> str:
    """Returns the value that a chain of Reshapes starts from."""
    while (node := graph.producer(name, "Reshape")) is not None:
        name = node.inputs[0]
    return name


def _per_group(graph: Graph, name: str) -> str | None:
    """Returns the value [batch, groups] that is repeated for each channel of a group to make this value, or None."""
    expansion = graph.producer(_before_reshapes(graph, name), "Expand")
    if expansion is None:
        return None
    before, after = graph.shapes[expansion.inputs[0]], graph.shapes[expansion.output]
    source = _before_reshapes(graph, expansion.inputs[0])
    if len(after) == 3 and before == (*after[:2], 1) and graph.shapes[source] == after[:2]:
        return source
    return None


def _split_groups(graph: Graph, mean: Node, value: str) -> int | None:
    """Returns the number of groups if a mean is over the channels and pixels of each group of a value, else None."""
    split, shape = graph.producer(mean.inputs[0], "Reshape"), graph.shapes[value]
    grouped = graph.shapes[mean.inputs[0]]
    if split is None or split.inputs[0] != value or len(grouped) != len(shape) + 1 or len(shape) < 3:
        return None
    sizes_fit = grouped[0] == shape[0] and grouped[3:] == shape[2:] and grouped[1] * grouped[2] == shape[1]
    static = all(isinstance(dim, int) for dim in shape[1:])
    return grouped[1] if static and sizes_fit and _axes(graph, mean) == list(range(2, len(grouped))) else None
