"""Padding of depthwise convolutions: the model computes the same, with channels in multiples of 16."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest

import export
from export.padding import pad_depthwise

SIDE = 6


def convolve(x, channels, *, size=1, groups=1, seed=0):
    random = np.random.default_rng(channels + size + seed)
    kernel = random.normal(size=(size, size, x.shape[-1] // groups, channels)).astype(np.float32) / size
    layouts = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layouts, feature_group_count=groups
    )  # fmt: skip
    return y + random.normal(size=(1, 1, 1, channels)).astype(np.float32)


def block(x, channels):
    """An inverted bottleneck with squeeze-and-excitation."""
    y = jax.nn.hard_swish(convolve(x, channels))
    y = jax.nn.relu(convolve(y, channels, size=3, groups=channels))
    gate = jax.nn.relu(convolve(y.mean((1, 2), keepdims=True), 4))
    return x + convolve(y * jax.nn.hard_sigmoid(convolve(gate, channels)), 8)


def on_the_shortcut(x, channels):
    """Depthwise convolutions between which channels are added."""
    x = convolve(x, channels)
    for seed in range(2):  # Equal kernels would be one constant, which two layers share.
        x = x + jax.nn.relu6(convolve(x, channels, size=3, groups=channels, seed=seed))
    return convolve(x, 8)


def make(middle, channels):
    def classify(image):
        x = jax.nn.relu(convolve(image.astype(jnp.float32) / 64, 8, size=3))
        return {"logits": middle(x, channels).mean((1, 2)) @ np.eye(8, dtype=np.float32)}

    return export.to_onnx(classify, {"image": ("uint8", ("batch", SIDE, SIDE, 3))})


def padded(model):
    """Returns the model with padded channels, and the sizes of its depthwise convolutions."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    pad_depthwise(changed, [node.name for node in changed.graph.node])
    arrays = {array.name: array for array in changed.graph.initializer}
    kernels = [arrays[node.input[1]].dims for node in changed.graph.node if node.op_type == "Conv"]
    return changed, [dims[0] for dims in kernels if dims[1:] == [1, 3, 3]]


def logits(model):
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


@pytest.mark.parametrize(("middle", "found"), [(block, [48]), (on_the_shortcut, [48, 48])])
def test_padded_channels_change_nothing(middle, found):
    model = make(middle, 40)
    changed, sizes = padded(model)
    assert sizes == found
    onnx.checker.check_model(changed, full_check=True)
    expected = logits(model)
    assert np.abs(logits(changed) - expected).max() < 1e-5 * np.abs(expected).max()


def reaching_the_logits(x, channels):
    return convolve(convolve(x, channels), channels, size=3, groups=channels)[..., :8]


def mixed(x, channels):
    y = convolve(convolve(x, channels), channels, size=3, groups=channels)
    return convolve(jax.nn.softmax(y), 8)


@pytest.mark.parametrize(
    ("middle", "channels"), [(reaching_the_logits, 40), (mixed, 40), (block, 8), (block, 24), (block, 48)]
)
def test_channels_stay_where_others_depend_on_them_or_few_would_be_used(middle, channels):
    model = make(middle, channels)
    changed, sizes = padded(model)
    assert sizes == [channels]
    assert changed == model
