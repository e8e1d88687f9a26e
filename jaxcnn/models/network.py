"""What every network has in common: how it is called, and what it computes with."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from jaxcnn.models.layers import Images
from jaxcnn.ops.dispatch import use_cpu_kernels


class Network(nn.Module, kw_only=True):
    """Base class of the networks. A subclass defines `logits` as a compact method.

    A network is called as `network(images, train)`. Its variables are the collections `params` and `batch_stats`,
    always float32. Training needs the random stream `dropout`. Equal fields make equal networks with equal hashes, so a
    function compiled for one serves the other.

    Attributes:
      classes: number of logits.
      dtype: what the layers compute in, but for normalisations and the last layer, which compute in float32.
      cpu_kernels: use the CPU kernels of `jaxcnn.ops`. They change neither the variables nor, but for rounding, the
        results. The layers do not know of it: their operations find out while they are traced.
    """

    classes: int
    dtype: Dtype = jnp.float32
    cpu_kernels: bool = False

    def __call__(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """Computes the logits of pictures, in float32.

        Args:
          images: RGB in [0, 255], uint8 or float, [batch, height, width, 3]; normalising them is part of the network.
          train: normalise by the statistics of the batch, update `batch_stats`, and drop features at random.
        """
        with use_cpu_kernels(self.cpu_kernels):
            return self.logits(images, train)

    def logits(self, images: Images, train: bool) -> Float[Array, "batch {self.classes}"]:
        """The layers of the network; takes and returns what `__call__` does."""
        raise NotImplementedError
