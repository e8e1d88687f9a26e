"""What every network has in common: how it is called, and what it computes with."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float, Float32

from jaxcnn.models.layers import Images, channel_moments
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.norm import use_norm_group

type PerColour = tuple[float, float, float]
"""A number for each of red, green and blue."""

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of ImageNet's pixels, by which most networks for photographs normalise pictures."""


LARGEST_MAP = 4
"""Most positions of a map that is pooled for the classifier, in multiples of the positions of the last one."""


class Network(nn.Module, kw_only=True):
    """Base class of the networks. A subclass is plain Flax: it defines `__call__(images, train)`.

    - `images` are pictures in RGB from 0 to 255, uint8 or float [batch, height, width, 3]. The network normalises them
      by its own mean and standard deviation.
    - `train` normalises by the statistics of the batch, updates `batch_stats`, and drops features at random.
    - The result is logits, float32 [batch, classes].
    - The variables are the collections `params` and `batch_stats`, always float32; the second is empty without batch
      normalisation. Training needs the random stream `dropout`.

    Equal fields make equal networks with equal hashes, so a function compiled for one serves the other.

    Attributes:
      classes: number of logits.
      dtype: what the layers compute in, but for normalisations and the last layer, which compute in float32.
      cpu_kernels: use the CPU kernels of `jaxcnn.ops`. They change neither the variables nor, but for rounding, the
        results. The layers do not know of it: their operations find out while they are traced.
      norm_group: pictures over which batch normalisation takes its statistics in training; None: the whole batch.
      pixel_mean: what is subtracted from the pixels, from 0 to 255. A family has its own default.
      pixel_std: what they are divided by then.
      pooling: what the classifier sees, see `pool`.
    """

    classes: int
    dtype: Dtype = jnp.float32
    cpu_kernels: bool = False
    norm_group: int | None = None
    pixel_mean: PerColour = (0.0, 0.0, 0.0)
    pixel_std: PerColour = (255.0, 255.0, 255.0)
    pooling: Literal["last", "all"] = "last"

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
        """Flax's `apply`, in which the operations use their CPU kernels if the network does.

        Raises:
          TypeError: the network is differentiated in forward mode, which the CPU kernels do not have.
        """
        with use_cpu_kernels(self.cpu_kernels), use_norm_group(self.norm_group):
            try:
                return super().apply(variables, *args, **options)
            except TypeError as error:
                if not self.cpu_kernels or "forward-mode autodiff" not in str(error):
                    raise
                raise TypeError(
                    "the CPU kernels have no forward mode, which jvp, jacfwd and hessian need; build the network with "
                    "the setting model.cpu_kernels False"
                ) from error

    @nn.nowrap
    def pool(
        self, last: Float[Array, "batch channels"], maps: Sequence[Float[Array, "batch ... _channels"]]
    ) -> Float32[Array, "batch features"]:
        """Returns what the classifier sees: the last features and, if `pooling` is `all`, features of earlier blocks.

        These help where pictures are unlike the training pictures of the network (Head2Toe, Evci et al. 2022). Maps
        much larger than the last one are left out: they take most of the time, and add nothing.

        Args:
          last: the features after the last layer.
          maps: the result of each block.
        """
        features = [last.astype(jnp.float32)]
        if self.pooling == "all":
            sizes = [math.prod(x.shape[1:-1]) for x in maps]
            kept = [x for x, size in zip(maps, sizes, strict=True) if size <= LARGEST_MAP * sizes[-1]]
            features += [moments for x in kept for moments in channel_moments(x)]
        # Only `features.group_widths` asks for the parts.
        self.sow("intermediates", "pooled", tuple(features))
        return jnp.concatenate(features, axis=-1) if len(features) > 1 else features[0]

    @nn.nowrap
    def normalise(self, images: Images) -> Float[Array, "batch height width 3"]:
        """Normalises pixels in float32, and rounds them to the type that the layers compute in."""
        mean, std = (jnp.asarray([[[pixel]]], jnp.float32) for pixel in (self.pixel_mean, self.pixel_std))
        return ((images.astype(jnp.float32) - mean) / std).astype(self.dtype)
