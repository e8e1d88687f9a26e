"""ResNet-18 and ResNet-50 for photographs (He et al. 2015, "Deep Residual Learning for Image Recognition").

Networks follow torchvision's `resnet.py`, whose layout timm shares: version 1.5, in which the 3x3 convolution of a
bottleneck has the stride. As in timm, the last scale of a block starts at zero. `resnet.py` beside this file is a
family of smaller networks.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from jaxcnn.models.layers import BatchNormAct, Conv, Features, Images, Layer, global_avg_pool
from jaxcnn.models.network import IMAGENET_MEAN, IMAGENET_STD, Network, PerColour
from jaxcnn.ops.norm import IDENTITY, RELU
from jaxcnn.ops.pool import overlapping_max_pool

WIDTHS = (64, 128, 256, 512)
"""Channels of the 3x3 convolutions of each stage."""
EXPANSION = 4
"""A bottleneck's result has so many times the channels of its 3x3 convolution."""


class Size(NamedTuple):
    """How the networks differ.

    Attributes:
      blocks: number of blocks of each stage.
      bottleneck: a block is 1x1, 3x3 and 1x1 instead of two 3x3 convolutions.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool


SIZES = {
    "resnet18": Size((2, 2, 2, 2), bottleneck=False),
    "resnet50": Size((3, 4, 6, 3), bottleneck=True),
}


class Block(nn.Module):
    """Convolutions with their normalisations, and a residual sum.

    Attributes:
      width: channels of the 3x3 convolutions.
      stride: step of the first 3x3 convolution.
      bottleneck: as in `Size`.
      conv: makes a convolution, given its channels.
      norm: makes a normalisation with its activation.
    """

    width: int
    stride: int
    bottleneck: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch _height _width _channels"]:
        """Starts as the activation of the shortcut, since the last scale is zero at first (Goyal et al. 2017)."""
        layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
        if self.bottleneck:
            layers = [(self.width, 1, 1), (self.width, 3, self.stride), (self.width * EXPANSION, 1, 1)]
        # The shortcut is a convolution where the shape changes.
        channels, shortcut = layers[-1][0], x
        if self.stride > 1 or x.shape[-1] != channels:
            shortcut = self.conv(channels, (1, 1), strides=self.stride, padding="VALID", name="shortcut_conv")(x)
            shortcut = self.norm(activation=IDENTITY, name="shortcut_norm")(shortcut)
        # All layers; the sum is part of the last normalisation.
        for i, (features, kernel, stride) in enumerate(layers):
            margin = kernel // 2
            conv = self.conv(
                features, (kernel, kernel), strides=stride, padding=((margin, margin),) * 2, name=f"conv_{i}"
            )
            is_last = i == len(layers) - 1
            scale_init = nn.initializers.zeros if is_last else nn.initializers.ones
            x = self.norm(scale_init=scale_init, name=f"norm_{i}")(conv(x), shortcut if is_last else None)
        return x


class ResNetV1(Network, kw_only=True):
    """A 7x7 convolution and a maximum pool, four stages of residual blocks, global average pool, linear layer.

    Attributes:
      size: number and kind of the blocks.
    """

    size: Size
    pixel_mean: PerColour = IMAGENET_MEAN
    pixel_std: PerColour = IMAGENET_STD

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes logits, see `Network`."""
        kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init)
        norm = partial(BatchNormAct, use_running_average=not train, momentum=0.9, epsilon=1e-5, activation=RELU)
        # Stem.
        x = self.normalise(images)
        x = conv(64, (7, 7), strides=2, padding=((3, 3), (3, 3)), name="stem_conv")(x)
        x = overlapping_max_pool(norm(name="stem_norm")(x))
        # Stages; each but the first halves the map.
        maps = []
        for i, (blocks, width) in enumerate(zip(self.size.blocks, WIDTHS, strict=True)):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                x = Block(width, stride, self.size.bottleneck, conv, norm, name=f"stage_{i}_block_{j}")(x)
                maps.append(x)
        return nn.Dense(self.classes, name="classifier")(self.pool(global_avg_pool(x), maps))
