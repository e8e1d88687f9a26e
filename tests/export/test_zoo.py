"""Every network of jaxcnn.models, with batch statistics far from their initial values."""

import jax
import jax.numpy as jnp
import pytest

from jaxcnn import models
from jaxcnn.config import ModelConfig

ORIGINALS = [ModelConfig(name=name) for name in models.NAMES if name != "resnet"]
RESNETS = [
    ModelConfig(widths=(8, 16), blocks=(1, 2)),
    ModelConfig(widths=(8, 8, 16), blocks=(0, 1, 1), stem=1, preactivation=True, dropout=0.1),
    ModelConfig(widths=(8, 16), blocks=(1, 0), stem=4, preactivation=True),
    ModelConfig(widths=(8, 16), blocks=(1, 1), stem=3),  # It does not divide the side, which is padded.
    ModelConfig(widths=(8, 16), blocks=(1, 0), inference_side=20),
]


@pytest.mark.parametrize(
    "config", [*ORIGINALS, *RESNETS], ids=lambda config: f"{config.name}-{config.stem}-{config.inference_side}"
)
def test_every_network_exports(config, exported, filled):
    module = models.build(config, classes=5)
    variables = filled(module, jnp.zeros((1, 16, 16, 3), jnp.uint8), train=False)

    def classify(image):
        logits = module.apply(variables, image, train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    ops = exported(classify, ("batch", 16, 16, 3), dtype="uint8").ops
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert ops["Conv"] == len(kernels)
    assert ops["Transpose"] == 1
    assert ops["Resize"] == (config.inference_side is not None)
    assert ops["Reshape"] == 0 or config.stem == 3
    assert ops["BatchNormalization"] == ops["MatMul"] == ops["Where"] == ops["Expand"] == 0
