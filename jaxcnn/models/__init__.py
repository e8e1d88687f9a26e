"""The networks by name. The only place that knows Flax Linen's modules from the inside.

A network is called as `module(images, train)`: pictures [batch, height, width, 3] in [0, 255], uint8 or float, to
float32 logits [batch, classes]. Normalising the pictures is part of it. Its variables are the collections `params`
and `batch_stats`, always float32; training needs the random stream `dropout`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import ModelConfig
from jaxcnn.models.original import ORIGINALS, Original
from jaxcnn.models.resnet import ResNet

__all__ = ["NAMES", "build", "count_parameters"]

NAMES: tuple[str, ...] = ("resnet", *ORIGINALS)
"""Every value of `ModelConfig.name`."""


def build(config: ModelConfig, *, classes: int) -> nn.Module:
    """The network that the settings describe.

    Equal settings give equal modules with equal hashes, so a function compiled for one serves the other.
    """
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[config.precision]
    if config.name != "resnet":
        return Original(spec=ORIGINALS[config.name], classes=classes, dtype=dtype)
    return ResNet(
        classes=classes,
        widths=config.widths,
        blocks=config.blocks,
        stem=config.stem,
        preactivation=config.preactivation,
        dropout=config.dropout,
        dtype=dtype,
    )


def count_parameters(variables: Any) -> int:
    """How many numbers a tree of arrays, or of their shapes, holds.

    Of `variables["params"]` these are the trainable parameters; Keras' total counts `variables["batch_stats"]` too.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables))
