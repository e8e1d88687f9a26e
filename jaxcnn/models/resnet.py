"""A family of residual networks that lower the resolution early, by a space-to-depth stem."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxcnn.models.layers import BatchNormAct, Conv, Features, Images, global_avg_pool, max_pool, space_to_depth
from jaxcnn.ops.layout import in_hwnc

type Layer = Callable[..., Callable[..., Array]]
"""A layer with its settings bound: called with what is left, such as its name, it gives a module."""


class BasicBlock(nn.Module):
    """Two convolutions and their residual, each normalised after it (He et al. 2015)."""

    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Starts as the activation alone: the last scale is zero at first (Goyal et al. 2017)."""
        channels = x.shape[-1]
        y = self.norm(name="norm_0")(self.conv(channels, name="conv_0")(x))
        y = self.conv(channels, name="conv_1")(y)
        return self.norm(name="norm_1", scale_init=nn.initializers.zeros)(y, x)


class PreactivationBlock(nn.Module):
    """Two convolutions and their residual, each normalised and activated before it (He et al. 2016)."""

    conv: Layer
    norm: Layer
    cpu: bool

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Starts as the identity: the last kernel is zero at first."""
        channels = x.shape[-1]
        y = self.conv(channels, name="conv_0")(self.norm(name="norm_0")(x))
        y = self.conv(channels, name="conv_1", kernel_init=nn.initializers.zeros)(self.norm(name="norm_1")(y))
        return in_hwnc(lambda x, y: x + y, x, y, cpu=self.cpu)


class Stage(nn.Module):
    """One resolution: a convolution to the stage's width, then residual blocks."""

    width: int
    blocks: int
    first: bool
    preactivation: bool
    conv: Layer
    norm: Layer
    cpu: bool

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch _height _width _channels"]:
        """Halves the map with a maximum pool first, but for the first stage."""
        if not self.first:
            x = max_pool(x, cpu=self.cpu)
        conv = self.conv(self.width, name="conv")
        if not self.preactivation:
            x = self.norm(name="norm")(conv(x))
        elif self.first:
            x = conv(x)  # pictures are normalised already
        else:
            x = conv(self.norm(name="norm")(x))
        block = partial(PreactivationBlock, cpu=self.cpu) if self.preactivation else BasicBlock
        for i in range(self.blocks):
            x = block(self.conv, self.norm, name=f"block_{i}")(x)
        return x


class ResNet(nn.Module):
    """Space-to-depth stem, stages of 3x3 residual blocks, global average, one linear layer.

    Each stage after the first halves the map with a 2x2 maximum pool. Pictures of 8x8 and more of any sides
    will do: zeros fill the last patches of the stem, and an odd last row or column of a map is dropped.

    Attributes:
      classes: number of logits.
      widths: channels of each stage.
      blocks: residual blocks of each stage.
      stem: side of the patches folded into channels before the first convolution; 1 folds nothing.
      preactivation: normalise and activate before each convolution rather than after.
      dropout: share of the pooled features that training drops.
      inference_side: side to which pictures are resized when not training (Touvron et al. 2019); None leaves them.
      dtype: what all but the normalisations and the last layer compute in.
      cpu: compute by CPU kernels.
    """

    classes: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    stem: int
    preactivation: bool
    dropout: float
    inference_side: int | None
    dtype: Dtype
    cpu: bool = False

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Logits in float32 of RGB pictures in [0, 255].

        Args:
          images: uint8 or float.
          train: normalise by the batch, update `batch_stats`, and drop with the `dropout` random stream.
        """
        conv = partial(
            Conv,
            kernel_size=(3, 3),
            use_bias=False,
            dtype=self.dtype,
            cpu=self.cpu,
            kernel_init=nn.initializers.he_normal(),
        )
        norm = partial(
            BatchNormAct,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            cpu=self.cpu,
            negative_slope=0.0,
        )
        x = images.astype(jnp.float32)
        if self.inference_side is not None and not train:
            x = jax.image.resize(x, (x.shape[0], self.inference_side, self.inference_side, 3), "linear")
        # About the mean and the spread of natural pictures, as round numbers: the first layers adapt to the rest.
        x = ((x - 118) / 64).astype(self.dtype)
        x = space_to_depth(x, side=self.stem)
        for i, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            x = Stage(width, blocks, i == 0, self.preactivation, conv, norm, self.cpu, name=f"stage_{i}")(x)
        if self.preactivation:
            x = norm(name="norm")(x)
        x = global_avg_pool(x).astype(jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, name="classifier")(x)
