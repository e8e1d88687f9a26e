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
from jaxcnn.ops.compiler import has_onednn

__all__ = ["HEAD", "NAMES", "build", "build_here", "count_parameters", "resolve_precision"]

NAMES: tuple[str, ...] = ("resnet", *ORIGINALS)
"""Every value of `ModelConfig.name`."""

HEAD = ("classifier", "classifier_norm")
"""The modules at the end of each network whose parameters are one for each class."""


def build(config: ModelConfig, *, classes: int, cpu: bool = False) -> nn.Module:
    """The network that the settings describe, on CPU kernels if `cpu`: the same variables, the same results.

    Equal settings give equal modules with equal hashes, so a function compiled for one serves the other.
    """
    dtype = jnp.bfloat16 if resolve_precision(config.precision) == "bfloat16" else jnp.float32
    if config.name != "resnet":
        return Original(spec=ORIGINALS[config.name], classes=classes, dtype=dtype, cpu=cpu)
    return ResNet(
        classes=classes,
        widths=config.widths,
        blocks=config.blocks,
        stem=config.stem,
        preactivation=config.preactivation,
        dropout=config.dropout,
        inference_side=config.inference_side,
        dtype=dtype,
        cpu=cpu,
    )


def build_here(config: ModelConfig, *, classes: int) -> nn.Module:
    """`build`, on CPU kernels where the settings and this machine have them.

    They turn a whole batch about, which cannot be divided among devices: a CPU is several only if XLA is told so.
    """
    cpu = config.cpu_kernels and jax.local_device_count() == 1 and has_onednn("float32")
    return build(config, classes=classes, cpu=cpu)


def resolve_precision(precision: str) -> str:
    """What the setting `precision` stands for on this machine."""
    if precision != "auto":
        return precision
    return "bfloat16" if jax.default_backend() != "cpu" or has_onednn("bfloat16") else "float32"


def count_parameters(variables: Any) -> int:
    """How many numbers a tree of arrays, or of their shapes, holds.

    Of `variables["params"]` these are the trainable parameters; Keras' total counts `variables["batch_stats"]` too.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables))
