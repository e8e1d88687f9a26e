"""Rounds the weights of convolutions to integers so that what they compute changes least."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

LEVELS, DEPTHWISE_LEVELS = 64, 127
"""Weights become integers from -LEVELS to LEVELS, which are 7 bits. Depthwise convolutions, whose products onnxruntime
does not add in 16 bits, have weights of 8 bits."""
_POSITIONS = 16
"""Number of pixels of each picture at which the inputs of a layer are collected."""
_DAMPING = 0.01
"""Share of the mean variance of the inputs that is added to each, so that their covariance can be inverted."""
_SHARES = np.linspace(0.6, 1.0, 41)
"""Candidates for the largest weight that is not clipped, as a share of the largest weight."""
_BLOCK = 128
"""Number of inputs after which an error reaches the weights of all later ones, for speed; the result is the same."""


class Layer(NamedTuple):
    """A convolution and its inputs, seen as a matrix product for each group of channels.

    Attributes:
      node: the convolution.
      weights: its kernel, float64 [groups, outputs, inputs].
      covariance: of the inputs, [groups, inputs, inputs].
      mean: of the inputs, [groups, inputs].
    """

    node: onnx.NodeProto
    weights: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray


def round_convolutions(
    model: onnx.ModelProto, names: Iterable[str], batches: Iterable[np.ndarray]
) -> dict[str, list[dict[str, Any]]]:
    """Replaces kernels and biases of convolutions of two axes by values that 8-bit integers represent exactly.

    A weight is not rounded to the nearest integer, but so that the weights after it can make up for its error (GPTQ,
    Frantar et al. 2022). The bias then makes up for what is left of the mean error (Nagel et al. 2019).

    Args:
      model: is changed.
      names: of the nodes that may be rounded.
      batches: uint8 pictures [batch, side, side, 3], for the statistics of the inputs.

    Returns:
      The scale and zero point of each output of a kernel, in the form of onnxruntime's option `TensorQuantOverrides`.
    """
    arrays = {array.name: array for array in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    chosen = set(names)
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.name in chosen and _is_roundable(node, arrays, readers)
    ]
    overrides = {}
    for layer in _measure(model, nodes, arrays, batches):
        # Each group has one channel as its input and one as its output; all others are matrix products.
        is_depthwise = len(layer.weights) > 1 and layer.weights.shape[1] == arrays[layer.node.input[1]].dims[1] == 1
        levels = DEPTHWISE_LEVELS if is_depthwise else LEVELS
        scales = _choose_scales(layer.weights, levels)
        rounded = _round(layer, scales, levels)
        # What the rounding changes in the mean of the results becomes part of the bias.
        shift = np.einsum("goi,gi->go", layer.weights - rounded, layer.mean).reshape(-1)
        _replace(model, layer.node, arrays, rounded, shift)
        overrides[layer.node.input[1]] = [
            {"scale": np.float32(scale), "zero_point": np.int8(0), "axis": 0} for scale in scales.reshape(-1)
        ]
    return overrides


def _is_roundable(node: onnx.NodeProto, arrays: dict[str, onnx.TensorProto], readers: Counter[str]) -> bool:
    """Returns whether a convolution has two axes, and constant weights that nothing else reads."""
    weights = node.input[1:]
    return all(name in arrays and readers[name] == 1 for name in weights) and len(arrays[weights[0]].dims) == 4


def _measure(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    arrays: dict[str, onnx.TensorProto],
    batches: Iterable[np.ndarray],
) -> Iterator[Layer]:
    """Yields the layers with the statistics of their inputs, as they are before any rounding."""
    if not nodes:
        return
    sources = sorted({node.input[0] for node in nodes})
    session = _open(model, sources)
    random = np.random.default_rng(0)
    sums: dict[str, Any] = {node.name: 0.0 for node in nodes}
    squares: dict[str, Any] = {node.name: 0.0 for node in nodes}
    count = 0
    for pictures in batches:
        found = dict(zip(sources, session.run(sources, {"image": pictures}), strict=True))
        for node in nodes:
            inputs = _patches(node, found[node.input[0]], tuple(arrays[node.input[1]].dims[2:]), random)
            # Where inputs vary little around a large mean, the covariance is a small difference of large sums.
            inputs = inputs.astype(np.float64)
            sums[node.name] += inputs.sum(1)
            squares[node.name] += inputs.transpose(0, 2, 1) @ inputs
        # A picture may have two views.
        count += inputs.shape[1]
    for node in nodes:
        mean = sums.pop(node.name) / count
        covariance = squares.pop(node.name) / count - mean[:, :, None] * mean[:, None, :]
        kernel = numpy_helper.to_array(arrays[node.input[1]]).astype(np.float64)
        yield Layer(node, kernel.reshape(len(mean), -1, mean.shape[1]), covariance, mean)


def _open(model: onnx.ModelProto, names: list[str]) -> Any:
    """Opens the model with more values as outputs."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    extended.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _patches(
    node: onnx.NodeProto, values: np.ndarray, kernel: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """Returns what a convolution multiplies its kernel with, at random pixels: [groups, examples, inputs].

    Args:
      node: the convolution.
      values: its input, [batch, channels, rows, columns].
      kernel: rows and columns of its kernel.
      random: chooses the pixels, the same in all pictures of the batch.
    """
    attributes = {field.name: helper.get_attribute_value(field) for field in node.attribute}
    top, left, bottom, right = attributes["pads"]
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    places = []
    for length, size, step, gap in zip(
        padded.shape[2:], kernel, attributes["strides"], attributes["dilations"], strict=True
    ):
        starts = step * random.integers(0, (length - gap * (size - 1) - 1) // step + 1, _POSITIONS)
        places.append(starts[:, None] + gap * np.arange(size))
    rows, columns = places
    found = padded[:, :, rows[:, :, None], columns[:, None, :]]
    # [batch, channels, positions, rows, columns] to [groups, batch * positions, channels of a group * rows * columns].
    groups, (batch, channels) = attributes["group"], found.shape[:2]
    found = found.reshape(batch, groups, channels // groups, _POSITIONS, -1).transpose(1, 0, 3, 2, 4)
    return found.reshape(groups, batch * _POSITIONS, -1)


def _choose_scales(weights: np.ndarray, levels: int) -> np.ndarray:
    """Returns for each output the scale that rounds its weights with the least squared error, [groups, outputs, 1]."""
    largest = np.abs(weights).max(-1, keepdims=True)
    candidates = np.where(largest > 0, largest, 1) * _SHARES / levels
    rounded = (_to_grid(weights, candidates[..., i : i + 1], levels) for i in range(len(_SHARES)))
    errors = [((values - weights) ** 2).sum(-1) for values in rounded]
    best = np.argmin(errors, axis=0)[..., None]
    return np.take_along_axis(candidates, best, -1).astype(np.float32).astype(np.float64)


def _to_grid(values: np.ndarray, scales: np.ndarray, levels: int) -> np.ndarray:
    """Rounds to the nearest multiple of the scale that has an integer."""
    rounded: np.ndarray = np.clip(np.round(values / scales), -levels, levels) * scales
    return rounded


def _round(layer: Layer, scales: np.ndarray, levels: int) -> np.ndarray:
    """Rounds one input after the other; the later ones are changed so that the results vary as they did.

    Rounds to the nearest where inputs vary too little for their covariance to have an inverse.
    """
    groups, outputs, inputs = layer.weights.shape
    variances = np.diagonal(layer.covariance, axis1=1, axis2=2)
    damping = np.maximum(_DAMPING * variances.mean(1), 1e-12)
    covariance = layer.covariance + damping[:, None, None] * np.eye(inputs)
    # The inputs that vary most come first: many others can make up for them.
    order = np.argsort(-variances, axis=1, kind="stable")
    covariance = covariance[np.arange(groups)[:, None, None], order[:, :, None], order[:, None, :]]
    weights = np.take_along_axis(layer.weights, order[:, None, :], 2)
    try:
        factor = np.linalg.cholesky(np.linalg.inv(covariance)).transpose(0, 2, 1)
    except np.linalg.LinAlgError:
        return _to_grid(layer.weights, scales, levels)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty((groups, outputs, stop - start))
        for i in range(start, stop):
            rounded = _to_grid(weights[:, :, i], scales[..., 0], levels)
            errors[..., i - start] = (weights[:, :, i] - rounded) / factor[:, None, i, i]
            weights[:, :, i] = rounded
            weights[:, :, i + 1 : stop] -= errors[..., i - start, None] * factor[:, None, i, i + 1 : stop]
        weights[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    result = np.empty_like(weights)
    np.put_along_axis(result, order[:, None, :], weights, 2)
    return result


def _replace(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    arrays: dict[str, onnx.TensorProto],
    weights: np.ndarray,
    shift: np.ndarray,
) -> None:
    """Gives a convolution other weights, and adds to its bias."""
    kernel = arrays[node.input[1]]
    kernel.CopyFrom(numpy_helper.from_array(weights.reshape(tuple(kernel.dims)).astype(np.float32), kernel.name))
    if len(node.input) == 2:
        node.input.append(f"{node.name}/bias")
        model.graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), node.input[2]))
    else:
        bias = arrays[node.input[2]]
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + shift.astype(np.float32), bias.name))
