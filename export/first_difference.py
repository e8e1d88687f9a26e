"""Where a file that computes something else first does so."""

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
    """A node whose value is not the function's.

    Attributes:
      difference: the largest of its elements.
      largest: the largest absolute value that the function has there.
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
    """The first node, in the file's order, that computes something else than the step of `fn` it stands for.

    Args:
      model: what `to_onnx(fn, inputs)` gave, or should have.
      feed: the inputs to compute with.
      tolerance: largest difference relative to the largest value.

    Returns:
      None if all that can be compared agree: a node that stands for several steps at once, or for none, cannot.
    """
    static = {name: (inputs[name][0], array.shape) for name, array in feed.items()}
    graph = build_graph(fn, static)
    graph.to_model()
    origins = {graph.node_names[name]: origin for name, origin in graph.origins.items() if name in graph.node_names}
    expected = evaluate(fn, static, [feed[name] for name in inputs])
    nodes = {node.name: node.output[-1] for node in model.graph.node if node.name in origins}
    found = _run_all(model, dict.fromkeys(nodes.values()), feed)
    for node, value in nodes.items():
        difference = _compare(node, found[value], _stored(expected, origins[node]), tolerance)
        if difference is not None:
            return difference
    return None


def _run_all(model: onnx.ModelProto, names: Mapping[str, None], feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The values of these names, which are made outputs for that."""
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    public = {each.name for each in model.graph.output}
    open_model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in public)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(open_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(feed)), strict=True))


def _stored(expected: Mapping[Any, Any], origin: Origin) -> np.ndarray | None:
    """The function's value with its axes in the order that the file stores them in."""
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
