"""The networks by name.

Each family is one file of plain Flax: a subclass of `network.Network` on the layers of `layers`. To add one, write its
file and register it in `NETWORKS` below, under a name that `jaxcnn.config.ModelName` lists. If its head is called
`classifier`, fine-tuning finds it (`HEAD`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.config import PIXELS, ModelConfig
from jaxcnn.models.convnext import SIZES as CONVNEXTS
from jaxcnn.models.convnext import ConvNeXt
from jaxcnn.models.efficientnet_lite import SCALES, EfficientNetLite
from jaxcnn.models.mobilenet_v3 import MobileNetV3
from jaxcnn.models.mobilenet_v3_sizes import SIZES as MOBILENETS
from jaxcnn.models.network import Network
from jaxcnn.models.original import ORIGINALS, Original
from jaxcnn.models.resnet import ResNet
from jaxcnn.models.resnet_v1 import SIZES as RESNETS
from jaxcnn.models.resnet_v1 import ResNetV1
from jaxcnn.models.vit import DEITS, HALF, VITS, VisionTransformer
from jaxcnn.ops.dispatch import cpu_kernels_available
from jaxcnn.ops.precision import measured_here

__all__ = ["HEAD", "NAMES", "Network", "build", "build_here", "count_parameters", "resolve_precision"]

HEAD = ("classifier", "classifier_norm")
"""Modules at the end of each network that have parameters for each class."""

type Family = Callable[[ModelConfig], Callable[..., Network]]
"""Binds the settings of a network to its own fields; `build` adds the fields of every `Network`."""


def _resnet(config: ModelConfig) -> Callable[..., Network]:
    return partial(
        ResNet,
        widths=config.widths,
        blocks=config.blocks,
        stem=config.stem,
        preactivation=config.preactivation,
        dropout=config.dropout,
        inference_side=config.inference_side,
    )


def _fixed(network: Callable[..., Network]) -> Family:
    """A network whose shape no setting changes."""
    return lambda config: network


NETWORKS: dict[str, Family] = {
    "resnet": _resnet,
    **{name: _fixed(partial(EfficientNetLite, scale=scale)) for name, scale in SCALES.items()},
    **{name: _fixed(partial(ResNetV1, size=size)) for name, size in RESNETS.items()},
    **{name: _fixed(partial(MobileNetV3, size=size)) for name, size in MOBILENETS.items()},
    **{name: _fixed(partial(ConvNeXt, size=size)) for name, size in CONVNEXTS.items()},
    **{
        name: _fixed(partial(VisionTransformer, size=size, pixel_mean=HALF, pixel_std=HALF))
        for name, size in VITS.items()
    },
    **{name: _fixed(partial(VisionTransformer, size=size)) for name, size in DEITS.items()},
    **{name: _fixed(partial(Original, spec=spec)) for name, spec in ORIGINALS.items()},
}
"""The registry."""

NAMES: tuple[str, ...] = tuple(NETWORKS)
"""Every value of `ModelConfig.name`."""


def build(config: ModelConfig, *, classes: int, cpu_kernels: bool = False) -> Network:
    """Builds the network that the settings describe. Equal arguments give equal networks with equal hashes.

    Args:
      config: its name, shape and precision; `config.cpu_kernels` is read by `build_here` only.
      classes: number of logits.
      cpu_kernels: use the CPU kernels, which is for running it in this process. Without them it is plain, as an export
        needs it. The variables are the same, and so are the results but for rounding.
    """
    dtype = jnp.dtype(resolve_precision(config.precision))
    # Without these settings a family normalises pictures in its own way.
    pixels = {name: value for name in PIXELS if (value := getattr(config, name)) is not None}
    return NETWORKS[config.name](config)(
        classes=classes,
        dtype=dtype,
        cpu_kernels=cpu_kernels,
        norm_group=config.norm_group,
        pooling=config.pooling,
        **pixels,
    )


def build_here(config: ModelConfig, *, classes: int) -> Network:
    """Builds the network to run on this machine: with CPU kernels if the settings allow them and they are faster."""
    return build(config, classes=classes, cpu_kernels=config.cpu_kernels and cpu_kernels_available())


def resolve_precision(precision: str) -> str:
    """The type that the setting `precision` means on this machine: `float32` or `bfloat16`.

    `auto` is bfloat16 on GPUs and TPUs. On a CPU it is the type in which a short measurement was faster, see
    `jaxcnn.ops.precision`.
    """
    if precision != "auto":
        return precision
    if jax.default_backend() != "cpu":
        return "bfloat16"
    measured = measured_here()
    return "float32" if measured is None else measured.faster


def count_parameters(variables: Any) -> int:
    """Counts the numbers in a tree of arrays or shapes.

    For `variables["params"]` that is the trainable parameters; Keras' total includes `variables["batch_stats"]`.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables))
