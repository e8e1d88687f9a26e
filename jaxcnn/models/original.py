"""The original system's network and the six prototypes of its experiment log, as arrangements of one kind of layer.

Where the log leaves something open, its parameter counts decide (200 classes; tested):

- seed, prototype 4: 758,224 parameters, 754,048 of them trainable.
- Prototype 1: 1,651,376 trainable.
- Prototype 2: 629,028 and 625,820. These two counts rule out the 1x1 bottlenecks of the final network, with any
  number of repeats: 704 normalised channels are left for the body and 390,512 weights and biases. Both come out
  exactly when every convolution is 3x3 and normalised, two of them in the first block, and in each other block
  two at the bottleneck's width followed by two at the block's.
- Prototype 3 was stopped early and has no count. Its head is taken as listed, so without normalised logits.
- Prototype 5: 1,396,560 and 1,390,592. The two convolutions come after block 2's pool, are both normalised, and no
  further pool follows them.
- Prototype 6 has no count. Its only normalisation is the one in block 1: the dense layers have none either.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxcnn.models.layers import (
    BatchNormAct,
    Conv,
    Features,
    Images,
    SpatialDropout,
    activate,
    avg_pool,
    global_avg_pool,
)
from jaxcnn.ops.layout import in_hwnc


@dataclass(frozen=True)
class ConvSpec:
    """A convolution, its batch normalisation and its LeakyReLU."""

    kernel: int
    channels: int
    norm: bool = True
    activation: bool = True


@dataclass(frozen=True)
class BlockSpec:
    """Spatial dropout, convolutions, average pool."""

    convs: tuple[ConvSpec, ...]
    dropout: float = 0.0
    pool: bool = True


@dataclass(frozen=True)
class DenseSpec:
    """A dense layer, its batch normalisation, its LeakyReLU and its dropout."""

    features: int
    dropout: float
    norm: bool = True


@dataclass(frozen=True)
class NetworkSpec:
    """All of an original network but the size of its last layer, the logits, which may be normalised too."""

    blocks: tuple[BlockSpec, ...]
    hidden: tuple[DenseSpec, ...]
    norm_logits: bool = False


SLOPE = 0.3
"""Keras' default slope of a LeakyReLU."""

_conv = partial(Conv, kernel_init=nn.initializers.glorot_uniform())
_dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())
_norm = partial(BatchNormAct, momentum=0.99, epsilon=1e-3)


class Block(nn.Module):
    """One block of an original network."""

    spec: BlockSpec
    dtype: Dtype
    cpu: bool = False

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Float[Array, "batch _height _width _channels"]:
        """Drops whole channels, convolves, and halves the map."""
        conv = partial(_conv, dtype=self.dtype, cpu=self.cpu)
        norm = partial(_norm, use_running_average=not train, dtype=self.dtype, cpu=self.cpu)
        x = SpatialDropout(self.spec.dropout, deterministic=not train, cpu=self.cpu)(x)
        for i, each in enumerate(self.spec.convs):
            slope = SLOPE if each.activation else 1.0
            x = conv(each.channels, (each.kernel, each.kernel), before_norm=each.norm, name=f"conv_{i}")(x)
            if each.norm:
                x = norm(negative_slope=slope, name=f"norm_{i}")(x)
            elif each.activation:
                x = in_hwnc(partial(activate, negative_slope=slope), x, cpu=self.cpu)
        return avg_pool(x, cpu=self.cpu) if self.spec.pool else x


class Original(nn.Module):
    """A network of the original Keras system, layer for layer, with Keras' initialisation.

    Convolutions are padded to keep the size (2x2 kernels at the bottom and right) and have a bias, also where a
    normalisation follows. Pictures of 8x8 and more of any sides will do.

    Attributes:
      spec: the arrangement.
      classes: number of logits.
      dtype: what all but the normalisations and the logits compute in.
      cpu: compute by CPU kernels.
    """

    spec: NetworkSpec
    classes: int
    dtype: Dtype
    cpu: bool = False

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Logits in float32 of RGB pictures in [0, 255].

        Args:
          images: uint8 or float.
          train: normalise by the batch, update `batch_stats`, and drop with the `dropout` random stream.
        """
        norm = partial(_norm, use_running_average=not train, cpu=self.cpu)
        x = (images.astype(jnp.float32) / 255).astype(self.dtype)
        for i, block in enumerate(self.spec.blocks):
            x = Block(block, self.dtype, self.cpu, name=f"block_{i}")(x, train)
        x = global_avg_pool(x)
        for i, hidden in enumerate(self.spec.hidden):
            x = _dense(hidden.features, dtype=self.dtype, name=f"dense_{i}")(x)
            if hidden.norm:
                x = norm(dtype=self.dtype, negative_slope=SLOPE, name=f"dense_norm_{i}")(x)
            else:
                x = activate(x, negative_slope=SLOPE)
            x = nn.Dropout(hidden.dropout, deterministic=not train)(x)
        logits = _dense(self.classes, name="classifier")(x.astype(jnp.float32))
        return norm(dtype=jnp.float32, name="classifier_norm")(logits) if self.spec.norm_logits else logits


def _bottlenecks(channels: int, compressed: int) -> tuple[ConvSpec, ...]:
    """A 3x3 convolution, then twice: compress 1x1, convolve 3x3, expand 1x1.

    The compression has no activation, which would distort the compressed features before the 3x3 convolution.
    """
    compress = ConvSpec(1, compressed, norm=False, activation=False)
    return (ConvSpec(3, channels), *(compress, ConvSpec(3, channels), ConvSpec(1, channels)) * 2)


_SEED = NetworkSpec(
    blocks=(
        BlockSpec((ConvSpec(2, 32),) * 4),
        BlockSpec(_bottlenecks(64, compressed=32), dropout=0.1),
        BlockSpec(_bottlenecks(128, compressed=64), dropout=0.1),
    ),
    hidden=(DenseSpec(600, dropout=0.35), DenseSpec(400, dropout=0.2)),
)

_PROTOTYPE1 = replace(
    _SEED,
    blocks=tuple(BlockSpec((ConvSpec(3, channels),) * 2) for channels in (32, 64, 128, 256)),
    norm_logits=True,
)

_PROTOTYPE2 = NetworkSpec(
    blocks=(
        BlockSpec((ConvSpec(3, 16),) * 2),
        *(BlockSpec((ConvSpec(3, channels // 2),) * 2 + (ConvSpec(3, channels),) * 2) for channels in (32, 64, 128)),
    ),
    hidden=(DenseSpec(400, dropout=0.35), DenseSpec(300, dropout=0.2)),
    norm_logits=True,
)

_PROTOTYPE3 = NetworkSpec(
    blocks=(_PROTOTYPE2.blocks[0], *(replace(block, dropout=0.1) for block in _PROTOTYPE2.blocks[1:])),
    hidden=(DenseSpec(512, dropout=0.35),),
)

_PROTOTYPE5 = replace(
    _SEED,
    blocks=(
        *_SEED.blocks[:2],
        BlockSpec((ConvSpec(1, 128), ConvSpec(2, 128)), pool=False),
        BlockSpec(_bottlenecks(256, compressed=64), dropout=0.1),
    ),
)


def _without_norm_and_dropout(block: BlockSpec) -> BlockSpec:
    return replace(block, convs=tuple(replace(conv, norm=False) for conv in block.convs), dropout=0.0)


_PROTOTYPE6 = replace(
    _SEED,
    blocks=(
        BlockSpec((ConvSpec(2, 32), *(ConvSpec(2, 32, norm=False),) * 3)),
        *(_without_norm_and_dropout(block) for block in _SEED.blocks[1:]),
    ),
    hidden=tuple(replace(hidden, norm=False) for hidden in _SEED.hidden),
)

ORIGINALS: dict[str, NetworkSpec] = {
    "seed": _SEED,
    "prototype1": _PROTOTYPE1,
    "prototype2": _PROTOTYPE2,
    "prototype3": _PROTOTYPE3,
    "prototype4": _SEED,
    "prototype5": _PROTOTYPE5,
    "prototype6": _PROTOTYPE6,
}
"""The original networks by name; prototype 4 became the final one, `seed`."""
