"""The layers that the networks share: batch normalisation with its activation, and pooling that halves a map."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Float, UInt8

type Images = UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"]
type Features = Float[Array, "batch height width channels"]


class BatchNormAct(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), then the sum with a residual, then the activation.

    All three are one module because they are bound by memory: one kernel that does them together can take
    the place of this code without a change to the networks. Statistics and the affine map are computed in
    float32, and the variance is the biased one, in the running average too, as in Keras.

    Attributes:
      use_running_average: normalise by the running statistics instead of the batch's.
      momentum: decay of the running statistics, per batch.
      epsilon: added to the variance.
      dtype: of the result.
      activation: applied last; None leaves the sum as it is.
      scale_init: initial scale; zeros make a residual block start as the identity.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: Dtype
    activation: Callable[[Array], Array] | None = None
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], residual: Float[Array, "*batch channels"] | None = None
    ) -> Float[Array, "*batch channels"]:
        """Normalises each channel over all other axes."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        wide = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            axes = tuple(range(x.ndim - 1))
            mean = wide.mean(axes)
            # One pass over the map instead of two; rounding can take it just below zero.
            var = jnp.maximum(lax.square(wide).mean(axes) - lax.square(mean), 0)
            if not self.is_initializing():
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var

        factor = scale * lax.rsqrt(var + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (channels,)
        y = wide * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
        if residual is not None:
            y = y + residual.astype(jnp.float32)
        if self.activation is not None:
            y = self.activation(y)
        return y.astype(self.dtype)


def max_pool(x: Features) -> Float[Array, "batch _height _width channels"]:
    """The maximum of each 2x2 patch. An odd last row or column is dropped; a side of 1 stays."""
    window = _halving_window(x)
    largest: Array = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
    return largest


def avg_pool(x: Features) -> Float[Array, "batch _height _width channels"]:
    """The mean of each 2x2 patch. An odd last row or column is dropped, as in Keras; a side of 1 stays."""
    window = _halving_window(x)
    total: Array = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID")
    return total / (window[1] * window[2])


def global_avg_pool(x: Features) -> Float[Array, "batch channels"]:
    """The mean of each channel; in bfloat16 it is summed in float32."""
    return x.mean((1, 2))


def space_to_depth(x: Features, *, side: int) -> Float[Array, "batch _height _width _channels"]:
    """Folds patches of side x side pixels into channels; zeros fill the bottom and right to whole patches."""
    batch, height, width, channels = x.shape
    if height % side or width % side:
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    patches = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, rows, columns, side * side * channels)


def _halving_window(x: Features) -> tuple[int, int, int, int]:
    # Five halvings take an 8x8 picture past 1x1, where a 2x2 window would leave nothing.
    return (1, min(2, x.shape[1]), min(2, x.shape[2]), 1)
