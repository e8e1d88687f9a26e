"""Channels of zeros that make the depthwise convolutions of a model fast in 8-bit integers."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

_WIDTH = 16
"""Channels that onnxruntime's depthwise kernel for integers computes at a time on x86. The rest it computes singly."""
_LARGEST_GROWTH = 1.25
_CHANNELWISE = ("Add", "AveragePool", "Clip", "GlobalAveragePool", "HardSigmoid", "MaxPool", "Mul", "Relu")


class _Region:
    """The layers around a depthwise convolution that share its channels.

    Attributes:
      before: convolutions that compute the channels.
      depthwise: convolutions that filter each channel.
      after: convolutions that read the channels.
    """

    def __init__(self, model: onnx.ModelProto, arrays: dict[str, onnx.TensorProto]):
        self.before: list[onnx.NodeProto] = []
        self.depthwise: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []
        self._arrays = arrays
        self._outputs = {output.name for output in model.graph.output}
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._readers = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def grow(self, value: str) -> bool:
        """Collects all layers that share the channels of a value; returns whether these can be changed."""
        found, pending = set(), [value]
        while pending:
            value = pending.pop()
            if value in found:
                continue
            found.add(value)
            if value not in self._producers or value in self._outputs:
                return False
            for node in (self._producers[value], *self._readers[value]):
                values = self._enter(node, value)
                if values is None:
                    return False
                pending += values
        return True

    def _enter(self, node: onnx.NodeProto, value: str) -> list[str] | None:
        """Adds a node at a value; returns the values that share its channels, or None if the node mixes them."""
        constants = [name for name in node.input if name in self._arrays]
        values = [name for name in (*node.input, *node.output) if name and name not in self._arrays]
        if node.op_type in _CHANNELWISE:
            return values if all(np.prod(self._arrays[name].dims) == 1 for name in constants) else None
        if node.op_type != "Conv" or len(constants) != len(node.input) - 1:
            return None
        if any(len(self._readers[name]) > 1 for name in constants):
            return None
        if _is_depthwise(node, self._arrays):
            layers = self.depthwise
        elif _group(node).i == 1:
            layers, values = self.before if value in node.output else self.after, []
        else:
            return None
        if node not in layers:
            layers.append(node)
        return values


def pad_depthwise(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Gives depthwise convolutions, and the layers around them, a multiple of 16 channels; the others are zero.

    The outputs of the model stay the same. Layers that would become more than a quarter wider, and those whose channels
    reach an output or an operator that mixes them, stay as they are.

    Args:
      model: is changed.
      names: of the depthwise convolutions that may be changed.
    """
    arrays = {array.name: array for array in model.graph.initializer}
    chosen = set(names)
    for node in model.graph.node:
        if node.name not in chosen or not _is_depthwise(node, arrays):
            continue
        channels = arrays[node.input[1]].dims[0]
        added = -channels % _WIDTH
        region = _Region(model, arrays)
        if 0 < added <= (_LARGEST_GROWTH - 1) * channels and region.grow(node.input[0]):
            _pad(region, arrays, added)


def _is_depthwise(node: onnx.NodeProto, arrays: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Conv" or node.input[1] not in arrays:
        return False
    outputs, inputs = arrays[node.input[1]].dims[:2]
    return bool(inputs == 1 and outputs > 1 and _group(node).i == outputs)


def _group(node: onnx.NodeProto) -> onnx.AttributeProto:
    """Returns the attribute of a convolution that all exported ones have."""
    found: onnx.AttributeProto = next(attribute for attribute in node.attribute if attribute.name == "group")
    return found


def _pad(region: _Region, arrays: dict[str, onnx.TensorProto], added: int) -> None:
    """Adds channels of zeros to all layers of a region."""
    for node in (*region.before, *region.depthwise):
        for name in node.input[1:]:
            _append_zeros(arrays[name], added, axis=0)
    for node in region.depthwise:
        _group(node).i += added
    for node in region.after:
        _append_zeros(arrays[node.input[1]], added, axis=1)


def _append_zeros(array: onnx.TensorProto, count: int, *, axis: int) -> None:
    values = numpy_helper.to_array(array)
    widths = [(0, count if i == axis else 0) for i in range(values.ndim)]
    array.CopyFrom(numpy_helper.from_array(np.pad(values, widths), array.name))
