"""What every network has in common: how it is called, and what it computes with."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from jaxcnn.ops.dispatch import use_cpu_kernels


class Network(nn.Module, kw_only=True):
    """Base class of the networks. A subclass is plain Flax: it defines `__call__(images, train)`.

    - `images` are pictures in RGB from 0 to 255, uint8 or float [batch, height, width, 3]. Normalising them is part of
      the network.
    - `train` normalises by the statistics of the batch, updates `batch_stats`, and drops features at random.
    - The result is logits, float32 [batch, classes].
    - The variables are the collections `params` and `batch_stats`, always float32. Training needs the random stream
      `dropout`.

    Equal fields make equal networks with equal hashes, so a function compiled for one serves the other.

    Attributes:
      classes: number of logits.
      dtype: what the layers compute in, but for normalisations and the last layer, which compute in float32.
      cpu_kernels: use the CPU kernels of `jaxcnn.ops`. They change neither the variables nor, but for rounding, the
        results. The layers do not know of it: their operations find out while they are traced.
    """

    classes: int
    dtype: Dtype = jnp.float32
    cpu_kernels: bool = False

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
        """Flax's `apply`, in which the operations use their CPU kernels if the network does."""
        with use_cpu_kernels(self.cpu_kernels):
            return super().apply(variables, *args, **options)
