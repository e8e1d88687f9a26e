"""EfficientNet-Lite 0 to 4: EfficientNet (Tan and Le 2019) without squeeze-excite, with ReLU6, made for eight bits.

Networks and names of parts follow TensorFlow's `efficientnet/lite/efficientnet_lite_builder.py`. The stochastic
depth with which that one trains is left out.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxcnn.models.layers import BatchNormAct, Conv, Features, Images, Layer, global_avg_pool
from jaxcnn.models.network import Network, PerColour
from jaxcnn.ops.norm import IDENTITY, RELU6


class StageSpec(NamedTuple):
    """Inverted bottlenecks of one width; the first has the stride.

    Attributes:
      blocks: how many there are at depth 1.
      kernel: rows and columns of the depthwise kernel.
      stride: step of the first depthwise kernel.
      expansion: factor of the channels inside a block.
      channels: of the results at width 1.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    StageSpec(1, 3, 1, 1, 16),
    StageSpec(2, 3, 2, 6, 24),
    StageSpec(2, 5, 2, 6, 40),
    StageSpec(3, 3, 2, 6, 80),
    StageSpec(3, 5, 1, 6, 112),
    StageSpec(4, 5, 2, 6, 192),
    StageSpec(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
"""Channels of the first and the last convolution, the same at every width."""


class Scale(NamedTuple):
    """How the five networks differ.

    Attributes:
      width: factor of the channels.
      depth: factor of the blocks of each stage but the first and the last.
      dropout: share of the pooled features that training drops.
    """

    width: float
    depth: float
    dropout: float


SCALES = {
    "efficientnet_lite0": Scale(1.0, 1.0, 0.2),
    "efficientnet_lite1": Scale(1.0, 1.1, 0.2),
    "efficientnet_lite2": Scale(1.1, 1.2, 0.3),
    "efficientnet_lite3": Scale(1.2, 1.4, 0.3),
    "efficientnet_lite4": Scale(1.4, 1.8, 0.3),
}

# An initial kernel has the variance 2 / (taps * results), and that of a depthwise kernel does not depend on channels.
_dense_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _depthwise_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / (shape[0] * shape[1]))


class InvertedBottleneck(nn.Module):
    """Expands the channels, filters each by itself, and projects them (MobileNetV2, Sandler et al. 2018).

    Attributes:
      channels: of the result.
      kernel: rows and columns of the depthwise kernel.
      stride: its step.
      expansion: factor of the channels in between; 1 leaves out the first convolution.
      conv: makes a convolution, given its channels.
      norm: makes a normalisation with its activation.
    """

    channels: int
    kernel: int
    stride: int
    expansion: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch _height _width {self.channels}"]:
        """Adds the input where the result has its shape."""
        y, inside = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = self.norm(name="expand_norm")(self.conv(inside, kernel_size=(1, 1), name="expand_conv")(y))
        depthwise = self.conv(
            inside,
            kernel_size=(self.kernel, self.kernel),
            strides=self.stride,
            groups=inside,
            kernel_init=_depthwise_init,
            name="depthwise_conv",
        )
        y = self.norm(name="depthwise_norm")(depthwise(y))
        y = self.conv(self.channels, kernel_size=(1, 1), name="project_conv")(y)
        has_shortcut = self.stride == 1 and x.shape[-1] == self.channels
        return self.norm(activation=IDENTITY, name="project_norm")(y, x if has_shortcut else None)


class EfficientNetLite(Network, kw_only=True):
    """A stem of stride 2, seven stages of inverted bottlenecks, a 1x1 convolution, global average pool, linear layer.

    Attributes:
      scale: width, depth and dropout.
    """

    scale: Scale
    pixel_mean: PerColour = (127.0, 127.0, 127.0)
    pixel_std: PerColour = (128.0, 128.0, 128.0)

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes logits, see `Network`."""
        conv = partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=_dense_init)
        norm = partial(BatchNormAct, use_running_average=not train, momentum=0.99, epsilon=1e-3, activation=RELU6)
        x = self.normalise(images)
        x = norm(name="stem_norm")(conv(STEM, kernel_size=(3, 3), strides=2, name="stem_conv")(x))
        maps = []
        for i, (stage, stride) in enumerate(self._blocks()):
            x = InvertedBottleneck(
                channels=round_channels(stage.channels * self.scale.width),
                kernel=stage.kernel,
                stride=stride,
                expansion=stage.expansion,
                conv=conv,
                norm=norm,
                name=f"block_{i}",
            )(x)
            maps.append(x)
        x = norm(name="head_norm")(conv(HEAD, kernel_size=(1, 1), name="head_conv")(x))
        x = self.pool(global_avg_pool(x), maps)
        x = nn.Dropout(self.scale.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, name="classifier")(x)

    def _blocks(self) -> Iterator[tuple[StageSpec, int]]:
        """The stage and the stride of each block; the first and the last stage have the same depth at every scale."""
        for stage in STAGES:
            is_end = stage in (STAGES[0], STAGES[-1])
            for j in range(stage.blocks if is_end else math.ceil(self.scale.depth * stage.blocks)):
                yield stage, stage.stride if j == 0 else 1


def round_channels(channels: float) -> int:
    """Rounds to a multiple of 8, but never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
