"""Every network of jaxcnn.models, with batch statistics far from their initial values."""

import jax
import jax.numpy as jnp
import pytest

from jaxcnn.config import ModelConfig
from jaxcnn.models import registry

ORIGINALS = [
    ModelConfig(name=name) for name in registry.NAMES if name.startswith(("efficientnet_lite0", "seed", "prototype"))
]
LARGER = [pytest.param(ModelConfig(name=f"efficientnet_lite{size}"), marks=pytest.mark.run) for size in (1, 2, 3, 4)]
PHOTOGRAPHS = [
    ModelConfig(name="resnet18"),
    ModelConfig(name="mobilenet_v3_small"),
    ModelConfig(name="convnext_atto"),
    ModelConfig(name="vit_tiny", pixel_mean=(1.0, 2.0, 3.0), pixel_std=(50.0, 60.0, 70.0)),
]
"""The smallest network of each family."""
RESNETS = [
    ModelConfig(widths=(8, 16), blocks=(1, 2)),
    ModelConfig(widths=(8, 8, 16), blocks=(0, 1, 1), stem=1, preactivation=True, dropout=0.1),
    ModelConfig(widths=(8, 16), blocks=(1, 0), stem=4, preactivation=True),
    ModelConfig(widths=(8, 16), blocks=(1, 1), stem=3),  # It does not divide the side, which is padded.
    ModelConfig(widths=(8, 16), blocks=(1, 0), inference_side=20),
]
POOLED = [
    ModelConfig(widths=(8, 16), blocks=(1, 0), pooling="all"),
    ModelConfig(name="efficientnet_lite0", pooling="all"),
    ModelConfig(name="vit_tiny", pooling="all"),
]
"""Networks whose classifier sees all blocks."""


def classifier(config, filled, side=16):
    """A function from pictures to logits and probabilities, and its convolution kernels."""
    module = registry.build(config, classes=5)
    variables = filled(module, jnp.zeros((1, side, side, 3), jnp.uint8), train=False)

    def classify(image):
        logits = module.apply(variables, image, train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    return classify, [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]


@pytest.mark.run
@pytest.mark.parametrize(
    "config", [*ORIGINALS, *LARGER, *RESNETS], ids=lambda config: f"{config.name}-{config.stem}-{config.inference_side}"
)
def test_every_network_exports(config, exported, filled):
    classify, kernels = classifier(config, filled)
    ops = exported(classify, ("batch", 16, 16, 3), dtype="uint8").ops
    assert ops["Conv"] == len(kernels)
    assert ops["Transpose"] == 1
    assert ops["Resize"] == (config.inference_side is not None)
    assert ops["Reshape"] == 0 or config.stem == 3
    assert ops["BatchNormalization"] == ops["MatMul"] == ops["Where"] == ops["Expand"] == 0


@pytest.mark.run
@pytest.mark.parametrize("config", POOLED, ids=lambda config: config.name)
def test_networks_that_pool_all_blocks_export(config, exported, filled):
    classify, kernels = classifier(config, filled, side=32)
    ops = exported(classify, ("batch", 32, 32, 3), dtype="uint8").ops
    assert ops["Conv"] == len(kernels)
    if config.name != "vit_tiny":
        assert ops["Transpose"] == 1
        assert ops["Expand"] == 0


@pytest.mark.run
@pytest.mark.parametrize("config", PHOTOGRAPHS, ids=lambda config: config.name)
def test_every_family_for_photographs_exports(config, exported, filled):
    classify, kernels = classifier(config, filled, side=32)
    ops = exported(classify, ("batch", 32, 32, 3), dtype="uint8").ops
    assert ops["Conv"] == len(kernels)
    assert ops["BatchNormalization"] == ops["Where"] == ops["Resize"] == 0
    # Runtimes fuse a layer normalisation over the last axis only. Maps of more than one pixel are transposed for it and
    # back.
    assert ops["Pow"] == {"vit_tiny": 25, "convnext_atto": 17}.get(config.name, 0)
    if config.name != "vit_tiny":
        assert ops["Transpose"] == {"convnext_atto": 29}.get(config.name, 1)
        assert ops["MatMul"] == ops["Expand"] == 0
    # Each hard swish, but not the nine gates.
    assert ops["HardSigmoid"] == {"mobilenet_v3_small": 19}.get(config.name, 0)
    assert ops["Softmax"] == {"vit_tiny": 13}.get(config.name, 1)
    assert ops["Erf"] == {"vit_tiny": 12, "convnext_atto": 12}.get(config.name, 0)
