"""Vision transformers of patches of 16x16 pixels: ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021).

The two are the same network; they differ in how they were trained and normalise pictures. Networks and initialisation
follow timm's `vision_transformer.py` and `deit.py`, without distillation.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxcnn.models.layers import Conv, Dense, Images, LayerNorm, StochasticDepth, gelu
from jaxcnn.models.network import IMAGENET_MEAN, IMAGENET_STD, Network, PerColour

type Tokens = Float[Array, "batch tokens channels"]

PATCH = 16
"""Side of a patch in pixels."""
GRID = 14
"""Patches along a side of the pictures that the positions are learned for, which have 224 pixels."""
DEPTH = 12
"""Number of blocks."""
HEAD_WIDTH = 64
"""Channels of a head of the attention."""
EXPANSION = 4
"""Factor of the channels between the two dense layers of a block."""

HALF = (127.5, 127.5, 127.5)
"""What ViT normalises pixels by, as mean and as deviation: they become numbers from -1 to 1."""

# In timm, this normal distribution is cut at -2 and 2, which are a hundred deviations.
_init = nn.initializers.normal(0.02)


class Size(NamedTuple):
    """How the networks differ.

    Attributes:
      width: channels of a token.
      stochastic_depth: probability that training drops the last block; that of the first is zero, and it rises evenly.
    """

    width: int
    stochastic_depth: float = 0.0


VITS = {"vit_tiny": Size(192), "vit_small": Size(384)}
DEITS = {"deit_tiny": Size(192, stochastic_depth=0.1), "deit_small": Size(384, stochastic_depth=0.1)}


class Attention(nn.Module):
    """Self-attention with several heads (Vaswani et al. 2017). The softmax is computed in float32.

    Attributes:
      dtype: what the layers compute in.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Mixes the tokens of each picture."""
        batch, tokens, channels = x.shape
        dense = partial(Dense, dtype=self.dtype, kernel_init=_init)
        heads = dense(3 * channels, name="qkv")(x).reshape(batch, tokens, 3, -1, HEAD_WIDTH)
        query, key, value = (heads[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhc,bkhc->bhqk", query * HEAD_WIDTH**-0.5, key)
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(batch, tokens, channels)
        return dense(channels, name="projection")(mixed)


class Block(nn.Module):
    """Attention, then two dense layers for each token by itself; both normalise their input and add their result to it.

    Attributes:
      drop: probability that training leaves out a branch.
      dtype: what the layers compute in.
    """

    drop: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Tokens, train: bool) -> Tokens:
        """Computes the tokens of the next block."""
        dense = partial(Dense, dtype=self.dtype, kernel_init=_init)
        drop = partial(StochasticDepth, self.drop, deterministic=not train)
        x = x + drop()(Attention(self.dtype, name="attention")(LayerNorm(name="attention_norm")(x)))
        y = dense(EXPANSION * x.shape[-1], name="expand")(LayerNorm(name="mlp_norm")(x))
        return x + drop()(dense(x.shape[-1], name="project")(gelu(y)))


class VisionTransformer(Network, kw_only=True):
    """Patches with their positions and a class token, twelve blocks, layer normalisation, linear layer.

    Pictures may have any sides: zeros complete the last patches, and the positions are interpolated where a picture has
    more or fewer patches than `GRID`.

    Attributes:
      size: width and stochastic depth.
    """

    size: Size
    pixel_mean: PerColour = IMAGENET_MEAN
    pixel_std: PerColour = IMAGENET_STD

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes logits, see `Network`."""
        batch, width = images.shape[0], self.size.width
        # Patches become tokens, behind the class token.
        rows, columns = (-length % PATCH for length in images.shape[1:3])
        patches = Conv(
            width, (PATCH, PATCH), self.dtype, strides=PATCH, padding=((0, rows), (0, columns)), name="patch_conv"
        )(self.normalise(images))
        token = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, width), jnp.float32)
        positions = self.param("positions", _init, (1, 1 + GRID**2, width), jnp.float32)
        # The class token is added to a padded place: repeated for each picture of a batch of any size, OpenVINO 2024.0
        # and OpenCV 4 refuse it.
        places = interpolate(jnp.asarray(positions), *patches.shape[1:3])
        added = jnp.concatenate([token + places[:, :1], places[:, 1:]], axis=1)
        padded = jnp.pad(patches.reshape(batch, -1, width), ((0, 0), (1, 0), (0, 0)))
        x = (padded.astype(jnp.float32) + added).astype(self.dtype)
        maps = []
        for i in range(DEPTH):
            x = Block(self.size.stochastic_depth * i / (DEPTH - 1), self.dtype, name=f"block_{i}")(x, train)
            maps.append(x)
        # Only the class token is classified, unless all features are.
        x = self.pool(LayerNorm(name="norm")(x[:, 0].astype(jnp.float32)), maps)
        return nn.Dense(self.classes, kernel_init=_init, name="classifier")(x)


def interpolate(
    positions: Float[Array, "1 positions channels"], rows: int, columns: int
) -> Float[Array, "1 _positions channels"]:
    """Resizes the grid of the positions; the first belongs to the class token and stays. Bicubic, as in timm.

    Args:
      positions: one for the class token, then `GRID` rows of `GRID`.
      rows: of the new grid.
      columns: of the new grid.
    """
    if rows == columns == GRID:
        return positions
    width = positions.shape[-1]
    grid = positions[:, 1:].reshape(1, GRID, GRID, width)
    grid = jax.image.resize(grid, (1, rows, columns, width), "cubic")
    return jnp.concatenate([positions[:, :1], grid.reshape(1, -1, width)], axis=1)
