"""Rounding of the weights of convolutions: outputs change less than by rounding to the nearest integers."""

import jax
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import export
from export import rounding
from export.rounding import round_convolutions

SIDE = 12


def convolve(image, kernel, *, groups=1, stride=1, gap=1, padding="SAME"):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image, kernel, (stride, stride), padding, rhs_dilation=(gap, gap), dimension_numbers=dimensions,
        feature_group_count=groups,
    )  # fmt: skip


def network(*, groups=1, stride=1, gap=1, padding="SAME", size=3):
    """A first layer with correlated channels, and the layer that is rounded."""
    random = np.random.default_rng(0)
    first = random.normal(size=(3, 3, 3, 8)).astype(np.float32) / 100
    first[..., 4:] = first[..., :4] + random.normal(size=(3, 3, 3, 4)).astype(np.float32) / 1000
    second = random.normal(size=(size, size, 8 // groups, 8)).astype(np.float32)

    def classify(image):
        x = jax.nn.relu(convolve(image.astype(np.float32), first))
        return {"logits": convolve(x, second, groups=groups, stride=stride, gap=gap, padding=padding)}

    return export.to_onnx(classify, {"image": ("uint8", ("batch", SIDE, SIDE, 3))})


def pictures(count=64):
    """Smooth pictures, in which neighbouring pixels are alike."""
    coarse = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return coarse.repeat(3, axis=1).repeat(3, axis=2)


def last(model):
    return [node for node in model.graph.node if node.op_type == "Conv"][-1]


def logits(model, images):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


VARIANTS = [{}, {"stride": 2}, {"groups": 2}, {"groups": 8}, {"gap": 2}, {"padding": "VALID"}, {"size": 1}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_patches_are_what_a_convolution_multiplies(variant):
    model, images = network(**variant), pictures(2)
    node = last(model)
    session = rounding._open(model, [node.input[0], node.output[0]])
    values, expected = session.run([node.input[0], node.output[0]], {"image": images})
    kernel = next(numpy_helper.to_array(array) for array in model.graph.initializer if array.name == node.input[1])
    patches = rounding._patches(node, values, kernel.shape[2:], np.random.default_rng(7))
    weights = kernel.reshape(len(patches), -1, patches.shape[2])
    found = np.einsum("gni,goi->ngo", patches, weights).reshape(len(images), rounding._POSITIONS, -1)
    # Each row of patches is one of the pixels; the same choice of pixels is drawn again.
    random = np.random.default_rng(7)
    rows, columns = (random.integers(0, length, rounding._POSITIONS) for length in expected.shape[2:])
    np.testing.assert_allclose(found, expected[:, :, rows, columns].transpose(0, 2, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_outputs_change_less_than_by_rounding_to_the_nearest(monkeypatch, variant):
    monkeypatch.setattr(rounding, "_BLOCK", 5)
    model, images = network(**variant), pictures()
    exact, others = logits(model, images), pictures(96)[64:]
    wanted = logits(model, others)
    nearest = onnx.ModelProto.FromString(model.SerializeToString())
    kernel = next(array for array in nearest.graph.initializer if array.name == last(nearest).input[1])
    weights = numpy_helper.to_array(kernel)
    levels = 127 if variant.get("groups") == 8 else 64
    scale = np.abs(weights).max((1, 2, 3), keepdims=True) / levels
    kernel.CopyFrom(numpy_helper.from_array((np.round(weights / scale) * scale).astype(np.float32), kernel.name))

    scales = round_convolutions(model, [last(model).name], np.split(images, 8))
    assert np.square(logits(model, others) - wanted).mean() < 0.7 * np.square(logits(nearest, others) - wanted).mean()
    # The mean error is nearly gone, but for the pixels that were not looked at.
    errors = (logits(model, images) - exact).mean((0, 1, 2))
    assert np.abs(errors).max() < 0.1 * np.abs(logits(model, images) - exact).max()
    (name,) = scales
    found = next(numpy_helper.to_array(array) for array in model.graph.initializer if array.name == name)
    steps = found / np.array([override["scale"] for override in scales[name]]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.abs(steps).max() <= levels + 1e-3


def test_groups_of_several_inputs_have_weights_of_7_bits_whatever_their_number_of_outputs():
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(3, 3, *shape)).astype(np.float32) for shape in ((3, 8), (2, 4)))

    def classify(image):
        return {"logits": convolve(jax.nn.relu(convolve(image.astype(np.float32), first)), second, groups=4)}

    model = export.to_onnx(classify, {"image": ("uint8", ("batch", SIDE, SIDE, 3))})
    scales = round_convolutions(model, [last(model).name], [pictures(8)])
    (name,) = scales
    found = next(numpy_helper.to_array(array) for array in model.graph.initializer if array.name == name)
    steps = found / np.array([override["scale"] for override in scales[name]]).reshape(-1, 1, 1, 1)
    assert np.abs(steps).max() == pytest.approx(rounding.LEVELS)


def test_inputs_that_are_always_zero_do_no_harm():
    model = network()
    before = logits(model, pictures())
    round_convolutions(model, [last(model).name], [np.zeros((4, SIDE, SIDE, 3), np.uint8)])
    assert np.isfinite(logits(model, pictures())).all()
    assert before.shape == logits(model, pictures()).shape


@pytest.mark.parametrize("spread", [1e-2, 0])
def test_inputs_that_hardly_vary_are_rounded_too(spread):
    """A covariance that is the difference of their large squares may not be positive."""
    random = np.random.default_rng(0)
    means = np.linspace(1000, 3000, 8, dtype=np.float32).reshape(1, 1, 1, 8)
    first, second = (random.normal(size=(3, 3, inputs, 8)).astype(np.float32) for inputs in (3, 8))

    def classify(image):
        x = spread * convolve(image.astype(np.float32) / 255, first) + means
        return {"logits": convolve(jax.nn.relu(x), second, padding="VALID")}

    model, images = export.to_onnx(classify, {"image": ("uint8", ("batch", SIDE, SIDE, 3))}), pictures(8)
    exact = logits(model, images)
    round_convolutions(model, [last(model).name], [images])
    # The bias makes up for the rounding.
    np.testing.assert_allclose(logits(model, images), exact, atol=1e-5 * np.abs(exact).max())


def test_other_layers_and_shared_weights_are_left_alone():
    model = network()
    shared = last(model)
    copy = model.graph.node.add()
    copy.CopyFrom(shared)
    copy.name, copy.output[0] = "copy", "other"
    before = model.SerializeToString()
    assert round_convolutions(model, [node.name for node in model.graph.node], [pictures(8)]).keys() == {
        next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    }
    model = onnx.ModelProto.FromString(before)
    assert round_convolutions(model, [], [pictures(8)]) == {}
    assert model.SerializeToString() == before
