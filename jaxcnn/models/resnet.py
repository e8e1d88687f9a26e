"""A family of residual networks that lower the resolution early, with a space-to-depth stem."""

import operator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcnn.models.layers import BatchNormAct, Conv, Features, Images, Layer, global_avg_pool, space_to_depth
from jaxcnn.models.network import Network, PerColour
from jaxcnn.ops.layout import pointwise
from jaxcnn.ops.norm import RELU
from jaxcnn.ops.pool import max_pool


class BasicBlock(nn.Module):
    """Two convolutions and a residual sum, each followed by its normalisation (He et al. 2015)."""

    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Starts as the activation alone, since the last scale is zero at first (Goyal et al. 2017)."""
        channels = x.shape[-1]
        y = self.norm(name="norm_0")(self.conv(channels, name="conv_0")(x))
        y = self.conv(channels, name="conv_1")(y)
        return self.norm(name="norm_1", scale_init=nn.initializers.zeros)(y, x)


class PreactivationBlock(nn.Module):
    """Two convolutions, each after its normalisation and activation, and a residual sum (He et al. 2016)."""

    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Starts as the identity, since the last kernel is zero at first."""
        channels = x.shape[-1]
        y = self.conv(channels, name="conv_0")(self.norm(name="norm_0")(x))
        y = self.conv(channels, name="conv_1", kernel_init=nn.initializers.zeros)(self.norm(name="norm_1")(y))
        return pointwise(operator.add, x, y)


class Stage(nn.Module):
    """One resolution: a convolution to the stage's width, then residual blocks.

    Attributes:
      width: channels.
      blocks: number of residual blocks.
      first: keep the resolution, and expect pictures instead of features.
      preactivation: normalise and activate before each convolution instead of after.
      conv: makes a convolution, given its channels.
      norm: makes a normalisation with its activation.
    """

    width: int
    blocks: int
    first: bool
    preactivation: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch _height _width _channels"]:
        """Halves the map with a maximum pool, unless the stage is the first, then computes its features."""
        if not self.first:
            x = max_pool(x)
        conv = self.conv(self.width, name="conv")
        if not self.preactivation:
            x = self.norm(name="norm")(conv(x))
        elif self.first:
            # Pictures are normalised already.
            x = conv(x)
        else:
            x = conv(self.norm(name="norm")(x))
        block = PreactivationBlock if self.preactivation else BasicBlock
        for i in range(self.blocks):
            x = block(self.conv, self.norm, name=f"block_{i}")(x)
        return x


class ResNet(Network, kw_only=True):
    """Space-to-depth stem, stages of 3x3 residual blocks, global average pool, one linear layer.

    Each stage after the first halves the map with a 2x2 maximum pool. Pictures may have any sides from 8 pixels: zeros
    complete the last patches of the stem, and a pool drops an odd last row or column.

    Attributes:
      widths: channels of each stage.
      blocks: residual blocks of each stage.
      stem: side of the patches folded into channels before the first convolution; 1 folds nothing.
      preactivation: normalise and activate before each convolution instead of after.
      dropout: share of the pooled features that training drops.
      inference_side: side to which pictures are resized when not training (Touvron et al. 2019); None leaves them.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    stem: int
    preactivation: bool
    dropout: float
    inference_side: int | None
    # Roughly the mean and spread of natural pictures, in round numbers; the first layers adapt to the rest.
    pixel_mean: PerColour = (118.0, 118.0, 118.0)
    pixel_std: PerColour = (64.0, 64.0, 64.0)

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes logits, see `Network`."""
        conv = partial(
            Conv, kernel_size=(3, 3), use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal()
        )
        norm = partial(BatchNormAct, use_running_average=not train, momentum=0.9, epsilon=1e-5, activation=RELU)
        # Resize and normalise the pictures.
        x = images.astype(jnp.float32)
        if self.inference_side is not None and not train:
            x = jax.image.resize(x, (x.shape[0], self.inference_side, self.inference_side, 3), "linear")
        x = self.normalise(x)
        # Features, at ever lower resolutions.
        x = space_to_depth(x, side=self.stem)
        maps = []
        for i, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            x = Stage(width, blocks, i == 0, self.preactivation, conv, norm, name=f"stage_{i}")(x)
            maps.append(x)
        if self.preactivation:
            x = norm(name="norm")(x)
        # Classify them.
        x = self.pool(global_avg_pool(x), maps)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, name="classifier")(x)
