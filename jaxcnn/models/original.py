"""The network of the original Keras system and the six prototypes of its experiment log.

All of them are data: arrangements of blocks of convolutions and of dense layers, which one module builds. Where the log
leaves a detail open, its parameter counts, for 200 classes, decide; the tests check them:

- seed, which is prototype 4: 758,224 parameters, 754,048 of them trainable.
- Prototype 1: 1,651,376 trainable parameters.
- Prototype 2: 629,028 parameters, 625,820 of them trainable. These counts rule out the 1x1 bottlenecks of the final
  network, with any number of repeats: they leave 704 normalised channels and 390,512 weights and biases for the body.
  Both numbers come out exactly when every convolution is 3x3 and normalised, with two of them in the first block, and
  in each other block two at the bottleneck's width followed by two at the block's.
- Prototype 3 was stopped early and has no count. Its head is built as listed, so without normalised logits.
- Prototype 5: 1,396,560 parameters, 1,390,592 of them trainable. The two additional convolutions come after the pool of
  block 2, are both normalised, and no further pool follows them.
- Prototype 6 has no count. Its only normalisation is the one in block 1: the dense layers have none either.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxcnn.models.layers import BatchNormAct, Conv, Dense, Features, Images, SpatialDropout, global_avg_pool
from jaxcnn.models.network import Network
from jaxcnn.ops.layout import pointwise
from jaxcnn.ops.norm import IDENTITY, Activation
from jaxcnn.ops.pool import avg_pool


@dataclass(frozen=True)
class ConvSpec:
    """A convolution, its batch normalisation and its LeakyReLU.

    Attributes:
      kernel: rows and columns of the kernel.
      channels: of the result.
      norm: normalise the result.
      activation: apply the LeakyReLU last.
    """

    kernel: int
    channels: int
    norm: bool = True
    activation: bool = True


@dataclass(frozen=True)
class BlockSpec:
    """Spatial dropout, convolutions, average pool.

    Attributes:
      convs: the convolutions, first to last.
      dropout: share of the channels to drop.
      pool: halve the map at the end.
    """

    convs: tuple[ConvSpec, ...]
    dropout: float = 0.0
    pool: bool = True


@dataclass(frozen=True)
class DenseSpec:
    """A dense layer, its batch normalisation, its LeakyReLU and its dropout.

    Attributes:
      features: number of results.
      dropout: share of the features to drop.
      norm: normalise the result.
    """

    features: int
    dropout: float
    norm: bool = True


@dataclass(frozen=True)
class NetworkSpec:
    """The arrangement of an original network, for any number of classes.

    Attributes:
      blocks: the body, first to last.
      hidden: the dense layers between the body and the logits.
      norm_logits: normalise the logits too.
    """

    blocks: tuple[BlockSpec, ...]
    hidden: tuple[DenseSpec, ...]
    norm_logits: bool = False


LEAKY_RELU = Activation(negative_slope=0.3)
"""Keras' default."""

_conv = partial(Conv, kernel_init=nn.initializers.glorot_uniform())
_dense = partial(Dense, kernel_init=nn.initializers.glorot_uniform())
_norm = partial(BatchNormAct, momentum=0.99, epsilon=1e-3)


class Block(nn.Module):
    """One block of an original network.

    Attributes:
      spec: its arrangement.
      dtype: what the convolutions compute in.
    """

    spec: BlockSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Float[Array, "batch _height _width _channels"]:
        """Drops whole channels, convolves, and halves the map."""
        conv = partial(_conv, dtype=self.dtype)
        norm = partial(_norm, use_running_average=not train)
        x = SpatialDropout(self.spec.dropout, deterministic=not train)(x)
        for i, layer in enumerate(self.spec.convs):
            x = conv(layer.channels, (layer.kernel, layer.kernel), before_norm=layer.norm, name=f"conv_{i}")(x)
            if layer.norm:
                x = norm(activation=LEAKY_RELU if layer.activation else IDENTITY, name=f"norm_{i}")(x)
            elif layer.activation:
                x = pointwise(LEAKY_RELU, x)
        return avg_pool(x) if self.spec.pool else x


class Original(Network, kw_only=True):
    """A network of the original Keras system, layer for layer, with Keras' initialisation.

    Convolutions are padded to keep the size of the map (2x2 kernels at the bottom and right) and have a bias, also
    where a normalisation follows. Pictures may have any sides from 8 pixels.

    Attributes:
      spec: its arrangement.
    """

    spec: NetworkSpec

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes logits, see `Network`."""
        norm = partial(_norm, use_running_average=not train)
        # Body.
        x = self.normalise(images)
        for i, block in enumerate(self.spec.blocks):
            x = Block(block, self.dtype, name=f"block_{i}")(x, train)
        # Head.
        x = global_avg_pool(x)
        for i, hidden in enumerate(self.spec.hidden):
            x = _dense(hidden.features, dtype=self.dtype, name=f"dense_{i}")(x)
            x = norm(activation=LEAKY_RELU, name=f"dense_norm_{i}")(x) if hidden.norm else LEAKY_RELU(x)
            x = nn.Dropout(hidden.dropout, deterministic=not train)(x)
        logits = _dense(self.classes, dtype=jnp.float32, name="classifier")(x)
        return norm(name="classifier_norm")(logits) if self.spec.norm_logits else logits


def _bottlenecks(channels: int, compressed: int) -> tuple[ConvSpec, ...]:
    """A 3x3 convolution, then two bottlenecks: compress 1x1, convolve 3x3, expand 1x1.

    The compression has no activation, which would distort the compressed features before the 3x3 convolution.

    Args:
      channels: before and after each bottleneck.
      compressed: between its compression and its 3x3 convolution.
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
"""The arrangements by name. Prototype 4 became the final network, `seed`."""
