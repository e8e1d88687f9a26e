"""Hard swish and gates in integers: onnxruntime computes them without floats, with ranges that end where they do."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import export
from export.quantize import quantize
from export.sidecars import open_model

SIDE, CHANNELS = 8, 16


def convolve(x, random, size=1):
    kernel = random.normal(size=(size, size, x.shape[-1], CHANNELS)).astype(np.float32)
    kernel /= np.sqrt(kernel[..., 0].size)
    layouts = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layouts)


def network(middle):
    def classify(image):
        random = np.random.default_rng(0)
        x = jax.nn.relu(convolve(image.astype(jnp.float32) / 64, random, size=3))
        x = convolve(middle(5 * convolve(x, random), random), random)
        return {"logits": x.mean((1, 2)) @ np.eye(CHANNELS, dtype=np.float32)}

    return export.to_onnx(classify, {"image": ("uint8", ("batch", SIDE, SIDE, 3))})


def swish(x, _):
    return jax.nn.hard_swish(x)


def gate(x, random):
    mean = x.mean((1, 2), keepdims=True)
    return x * jax.nn.hard_sigmoid(convolve(jax.nn.relu(mean), random))


@pytest.fixture
def files(tmp_path):
    """Quantizes a network; returns its pictures and both files."""

    def write(middle):
        paths = [tmp_path / "float.onnx", tmp_path / "int8.onnx"]
        onnx.save(network(middle), paths[0])
        images = np.random.default_rng(1).integers(0, 256, (64, SIDE, SIDE, 3), np.uint8)
        quantize(*paths, images)
        return images, *paths

    return write


def operators(path, folder):
    """Returns the operators that onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("middle", [swish, gate])
def test_onnxruntime_computes_it_in_integers(files, tmp_path, middle):
    images, exact, quantized = files(middle)
    ops = operators(quantized, tmp_path)
    assert "QLinearMul" in ops
    assert not {"Mul", "HardSigmoid"} & set(ops)
    expected, found = (open_model(path)(images)["logits"] for path in (exact, quantized))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_no_integer_stands_for_a_value_that_the_hard_swish_makes_0(files):
    _, _, quantized = files(swish)
    model = onnx.load(quantized)
    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    swished = next(node for node in model.graph.node if node.op_type == "Mul")
    lowest = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in swished.input:
            scale, zero = (arrays[name] for name in node.input[1:])
            lowest.append(-int(zero) * float(scale))
    assert sorted(lowest) == pytest.approx([-3, 0], abs=0.05)


def test_other_products_stay_in_float(files, tmp_path):
    _, _, quantized = files(lambda x, random: jnp.tanh(x * convolve(x, random)))
    assert "Mul" in operators(quantized, tmp_path)
