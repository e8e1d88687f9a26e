"""MobileNetV3 small and large (Howard et al. 2019, "Searching for MobileNetV3").

Networks follow torchvision's `mobilenetv3.py`; timm's `mobilenetv3_small_100` and `_large_100` are the same with
another layout. Initial values follow timm's.
"""

import operator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxcnn.models.efficientnet_lite import round_channels
from jaxcnn.models.layers import BatchNormAct, Conv, Features, Images, Layer, global_avg_pool
from jaxcnn.models.mobilenet_v3_sizes import EPSILON, BlockSpec, Size
from jaxcnn.models.network import IMAGENET_MEAN, IMAGENET_STD, Network, PerColour
from jaxcnn.ops.layout import pointwise
from jaxcnn.ops.norm import IDENTITY, RELU

STEM = 16
"""Channels of the first convolution."""
DROPOUT = 0.2
"""Share of the last features that training drops."""

_dense_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# A depthwise kernel's results are one for each channel, whose number its variance must not depend on.
_depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that depends on the mean of all channels (Hu et al. 2018).

    Attributes:
      dtype: what the layers compute in.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """The gate is a hard sigmoid."""
        channels = x.shape[-1]
        conv = partial(Conv, kernel_size=(1, 1), dtype=self.dtype, kernel_init=_dense_init)
        gate = _one_pixel(global_avg_pool(x))
        gate = pointwise(jax.nn.relu, conv(round_channels(channels / 4), name="reduce_conv")(gate))
        gate = pointwise(jax.nn.hard_sigmoid, conv(channels, name="expand_conv")(gate))
        return pointwise(operator.mul, x, gate)


class HardSwish(nn.Module):
    """The activation of the last map, as a module: a heatmap is of a map that a module returns."""

    def __call__(self, x: Features) -> Features:
        """Activates a map."""
        return pointwise(jax.nn.hard_swish, x)


class InvertedBottleneck(nn.Module):
    """Expands the channels, filters each by itself, gates them, and projects them.

    Attributes:
      spec: its arrangement.
      conv: makes a convolution, given its channels.
      norm: makes a normalisation with its activation, which is the identity by default.
    """

    spec: BlockSpec
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch _height _width {self.spec.channels}"]:
        """Adds the input where the result has its shape."""
        spec, y = self.spec, x
        if spec.expanded != x.shape[-1]:
            y = self.conv(spec.expanded, (1, 1), name="expand_conv")(y)
            y = self._normalise(y, name="expand_norm")
        margin = spec.kernel // 2
        depthwise = self.conv(
            spec.expanded,
            (spec.kernel, spec.kernel),
            strides=spec.stride,
            padding=((margin, margin), (margin, margin)),
            groups=spec.expanded,
            kernel_init=_depthwise_init,
            name="depthwise_conv",
        )
        y = self._normalise(depthwise(y), name="depthwise_norm")
        if spec.squeeze:
            y = SqueezeExcite(x.dtype, name="squeeze")(y)
        y = self.conv(spec.channels, (1, 1), name="project_conv")(y)
        has_shortcut = spec.stride == 1 and x.shape[-1] == spec.channels
        return self.norm(name="project_norm")(y, x if has_shortcut else None)

    def _normalise(self, x: Features, *, name: str) -> Features:
        """Normalises and activates."""
        if not self.spec.hard_swish:
            return self.norm(activation=RELU, name=name)(x)
        return pointwise(jax.nn.hard_swish, self.norm(name=name)(x))


class MobileNetV3(Network, kw_only=True):
    """A stem of stride 2, inverted bottlenecks, a 1x1 convolution, global average pool, two dense layers.

    Attributes:
      size: its blocks and the width of its head.
    """

    size: Size
    pixel_mean: PerColour = IMAGENET_MEAN
    pixel_std: PerColour = IMAGENET_STD

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes logits, see `Network`."""
        conv = partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=_dense_init)
        norm = partial(BatchNormAct, use_running_average=not train, momentum=0.99, epsilon=EPSILON, activation=IDENTITY)
        x = conv(STEM, (3, 3), strides=2, padding=((1, 1), (1, 1)), name="stem_conv")(self.normalise(images))
        x = pointwise(jax.nn.hard_swish, norm(name="stem_norm")(x))
        maps = []
        for i, spec in enumerate(self.size.blocks):
            x = InvertedBottleneck(spec, conv, norm, name=f"block_{i}")(x)
            maps.append(x)
        x = conv(6 * x.shape[-1], (1, 1), name="last_conv")(x)
        x = HardSwish(name="last_activation")(norm(name="last_norm")(x))
        # The head; its first layer is a convolution of one pixel in timm.
        head = Conv(self.size.features, (1, 1), self.dtype, kernel_init=_dense_init, name="head_conv")
        x = head(_one_pixel(global_avg_pool(x)))[:, 0, 0].astype(jnp.float32)
        x = nn.Dropout(DROPOUT, deterministic=not train)(self.pool(jax.nn.hard_swish(x), maps))
        return nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.01), name="classifier")(x)


def _one_pixel(x: Float[Array, "batch channels"]) -> Float[Array, "batch 1 1 channels"]:
    """Makes a map of one pixel."""
    return x[:, None, None]
