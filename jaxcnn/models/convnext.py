"""ConvNeXt: a ResNet modernised towards the design of vision transformers (Liu et al. 2022, "A ConvNet for the 2020s").

Networks and initialisation follow timm's `convnext.py`, which added the sizes below `tiny`.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxcnn.models.layers import Conv, Features, Images, LayerNorm, StochasticDepth, gelu, global_avg_pool
from jaxcnn.models.network import IMAGENET_MEAN, IMAGENET_STD, Network, PerColour
from jaxcnn.ops.layout import pointwise

EXPANSION = 4
"""Factor of the channels inside a block."""

# In timm, this normal distribution is cut at -2 and 2, which are a hundred deviations.
_init = nn.initializers.normal(0.02)


class Size(NamedTuple):
    """How the networks differ.

    Attributes:
      blocks: number of blocks of each stage.
      widths: channels of each stage.
      stochastic_depth: probability that training drops the last block; that of the first is zero, and it rises evenly.
    """

    blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    stochastic_depth: float = 0.0


SIZES = {
    "convnext_atto": Size((2, 2, 6, 2), (40, 80, 160, 320)),
    "convnext_femto": Size((2, 2, 6, 2), (48, 96, 192, 384)),
    "convnext_pico": Size((2, 2, 6, 2), (64, 128, 256, 512)),
    "convnext_nano": Size((2, 2, 8, 2), (80, 160, 320, 640)),
    "convnext_tiny": Size((3, 3, 9, 3), (96, 192, 384, 768), stochastic_depth=0.1),
}


class Block(nn.Module):
    """A 7x7 depthwise convolution, then two layers that treat each position by itself, and a residual sum.

    Attributes:
      drop: probability that training leaves out all but the residual.
      dtype: what it computes in.
    """

    drop: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        """Starts near the identity, since the layer scale is small at first (Touvron et al. 2021)."""
        channels = x.shape[-1]
        conv = partial(Conv, dtype=self.dtype, kernel_init=_init)
        y = conv(channels, (7, 7), padding=((3, 3), (3, 3)), groups=channels, name="depthwise_conv")(x)
        y = LayerNorm(name="norm")(y)
        y = conv(EXPANSION * channels, (1, 1), name="expand_conv")(y)
        y = pointwise(gelu, y)
        y = conv(channels, (1, 1), name="project_conv")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (channels,), jnp.float32)
        y = StochasticDepth(self.drop, deterministic=not train)(y)
        return pointwise(partial(_add_scaled, jnp.asarray(gamma)), x, y)


def _add_scaled(gamma: Float[Array, " channels"], x: Features, y: Features) -> Features:
    """Adds a branch times the layer scale, in float32, so that the gradient of the scale is summed in it."""
    scaled = y.astype(jnp.float32) * gamma.reshape(1, 1, 1, -1)
    return (x.astype(jnp.float32) + scaled).astype(x.dtype)


class ConvNeXt(Network, kw_only=True):
    """A stem of 4x4 patches, four stages of blocks, global average pool, layer normalisation, linear layer.

    Each stage after the first halves the map by 2x2 patches. A patch that pictures or maps fill only in part is left
    out, unless it is the only one: then zeros complete it.

    Attributes:
      size: blocks, widths and stochastic depth.
    """

    size: Size
    pixel_mean: PerColour = IMAGENET_MEAN
    pixel_std: PerColour = IMAGENET_STD

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes logits, see `Network`."""
        x = self.normalise(images)
        blocks = sum(self.size.blocks)
        number, maps = 0, []
        for i, (depth, width) in enumerate(zip(self.size.blocks, self.size.widths, strict=True)):
            # Lower the resolution. The stem normalises its result, the other stages what they are given.
            if i == 0:
                x = LayerNorm(name="stem_norm")(self._patches(x, width, side=4, name="stem_conv"))
            else:
                x = LayerNorm(name=f"downsample_{i}_norm")(x)
                x = self._patches(x, width, side=2, name=f"downsample_{i}_conv")
            for j in range(depth):
                drop = self.size.stochastic_depth * number / (blocks - 1)
                x = Block(drop, self.dtype, name=f"stage_{i}_block_{j}")(x, train)
                maps.append(x)
                number += 1
        x = self.pool(LayerNorm(name="head_norm")(global_avg_pool(x).astype(jnp.float32)), maps)
        return nn.Dense(self.classes, kernel_init=_init, name="classifier")(x)

    @nn.nowrap
    def _patches(
        self, x: Features, channels: int, *, side: int, name: str
    ) -> Float[Array, "batch _height _width {channels}"]:
        """Convolves patches that do not overlap."""
        rows, columns = (max(0, side - length) for length in x.shape[1:3])
        conv = Conv(
            channels,
            (side, side),
            self.dtype,
            strides=side,
            padding=((0, rows), (0, columns)),
            kernel_init=_init,
            name=name,
        )
        return conv(x)
