"""Hard swish and gates in 8-bit integers, in the form that onnxruntime has integer kernels for: Add and Mul."""

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper


def other_products(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the nodes Mul that are neither a hard swish nor the gate of a squeeze-and-excitation.

    The factor of these two is between 0 and 1, which 8 bits represent well.
    """
    clipped = {name for node in model.graph.node if node.op_type in ("Clip", "HardSigmoid") for name in node.output}
    return [node.name for node in model.graph.node if node.op_type == "Mul" and not clipped & set(node.input)]


def bound_below(model: onnx.ModelProto, kept: list[str]) -> None:
    """Clips the argument x of each hard swish where its hard sigmoid is 0, which leaves more integers for the rest.

    The quantizer makes the clipping part of the range of the layer that computes x.

    Args:
      model: is changed.
      kept: the names of nodes that are not quantized.
    """
    readers = Counter(name for node in model.graph.node for name in node.input)
    nodes = []
    for node in model.graph.node:
        name = node.input[0] if node.op_type == "HardSigmoid" and node.name not in kept else ""
        products = [user for user in model.graph.node if user.op_type == "Mul" and node.output[0] in user.input]
        if name and readers[name] == 2 and [name in product.input for product in products] == [True]:
            bounded, lowest = f"{node.name}/bounded", f"{node.name}/lowest"
            alpha, beta = _coefficients(node)
            model.graph.initializer.append(numpy_helper.from_array(np.array(-beta / alpha, np.float32), lowest))
            nodes.append(helper.make_node("Clip", [name, lowest], [bounded], name=bounded))
            for reader in (node, products[0]):
                reader.input[:] = [bounded if operand == name else operand for operand in reader.input]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def add_in_integers(model: onnx.ModelProto) -> None:
    """Replaces each quantized hard sigmoid of a quantized x by Add(x * alpha, beta) before the same quantization.

    x * alpha is x with another scale, so it costs nothing, and the integers of the result end at 0 and 1 as the hard
    sigmoid does. onnxruntime has an integer kernel for Add, but none for HardSigmoid.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    arrays = {array.name: array for array in model.graph.initializer}
    quantized = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    nodes = []
    for node in model.graph.node:
        source = producers.get(node.input[0]) if node.op_type == "HardSigmoid" else None
        if source is None or source.op_type != "DequantizeLinear" or node.output[0] not in quantized:
            nodes.append(node)
            continue
        alpha, beta = _coefficients(node)
        scale = alpha * numpy_helper.to_array(arrays[source.input[1]])
        constants = {"scale": scale, "beta": np.uint8(255), "beta_scale": beta / 255, "beta_zero": np.uint8(0)}
        names = {key: f"{node.name}/{key}" for key in constants}
        for key, value in constants.items():
            array = np.array(value, np.uint8 if isinstance(value, np.uint8) else np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, names[key]))
        scaled, shift = f"{node.name}/scaled", f"{node.name}/shift"
        nodes += [
            helper.make_node("DequantizeLinear", [source.input[0], names["scale"], source.input[2]], [scaled], scaled),
            helper.make_node(
                "DequantizeLinear", [names["beta"], names["beta_scale"], names["beta_zero"]], [shift], shift
            ),
            helper.make_node("Add", [scaled, shift], node.output, name=node.name),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _coefficients(node: onnx.NodeProto) -> tuple[float, float]:
    """Returns the slope of a HardSigmoid and its value at 0; ONNX's defaults are .2 and .5."""
    given = {field.name: float(helper.get_attribute_value(field)) for field in node.attribute}
    return given.get("alpha", 0.2), given.get("beta", 0.5)
