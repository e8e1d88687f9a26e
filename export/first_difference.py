"""Finds the first node of an ONNX file whose value differs from JAX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from export.converter import InputSpec, Origin, build_graph, evaluate


@dataclass(frozen=True)
class Difference:
    """A node whose value differs from the function's.

    Attributes:
      node: name of the node.
      difference: largest absolute difference of an element; infinite if the shapes differ.
      largest: largest absolute value that the function computes there.
    """

    node: str
    difference: float
    largest: float


def first_difference(
    model: onnx.ModelProto,
    fn: Callable[..., Any],
    inputs: Mapping[str, InputSpec],
    feed: Mapping[str, np.ndarray],
    *,
    tolerance: float,
) -> Difference | None:
    """Returns the first node, in the file's order, whose value differs from the equation of `fn` that it stands for.

    Args:
      model: the model that `to_onnx(fn, inputs)` returned, or one with the same names of nodes.
      fn: the function.
      inputs: types of its inputs, as for `to_onnx`.
      feed: an array for each input.
      tolerance: largest difference that is accepted, relative to the largest value.

    Returns:
      The difference, or None if all values agree. Nodes that stand for several equations at once, such as a
      convolution with a folded normalisation, or for none, cannot be compared.
    """
    # Build the graph again, with the sizes of the feed, to learn which equation each node stands for.
    static = {name: (inputs[name][0], array.shape) for name, array in feed.items()}
    graph = build_graph(fn, static)
    graph.to_model()
    origins = {graph.node_names[name]: origin for name, origin in graph.origins.items() if name in graph.node_names}

    # Compute both sides, then compare in the order of the file.
    expected = evaluate(fn, static, [feed[name] for name in inputs])
    nodes = {node.name: node.output[-1] for node in model.graph.node if node.name in origins}
    found = _run_all(model, dict.fromkeys(nodes.values()), feed)
    for node, value in nodes.items():
        difference = _compare(node, found[value], _stored(expected, origins[node]), tolerance)
        if difference is not None:
            return difference
    return None


def _run_all(model: onnx.ModelProto, names: Mapping[str, None], feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Runs a copy of a model that has all these values as outputs, and returns them by name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    public = {output.name for output in model.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in public)
    # Optimizations would merge nodes.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(feed)), strict=True))


def _stored(expected: Mapping[Any, Any], origin: Origin) -> np.ndarray | None:
    """Returns the function's value in the layout of the file, or None if it cannot be compared."""
    key, position, layout = origin
    if key not in expected:
        return None
    value = np.asarray(expected[key][position])
    return value.transpose(layout) if value.ndim == len(layout) else None


def _compare(node: str, found: np.ndarray, expected: np.ndarray | None, tolerance: float) -> Difference | None:
    if expected is None or expected.size == 0:
        return None
    largest = float(np.max(np.abs(expected.astype(np.float64))))
    if found.shape != expected.shape:
        return Difference(node, float("inf"), largest)
    difference = float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64))))
    return None if difference <= tolerance * largest else Difference(node, difference, largest)
