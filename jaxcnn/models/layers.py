"""The layers that the networks share: convolution, batch normalisation with its activation, and pooling.

Each computes the same on every backend. With `cpu` it does so by the kernels of `jaxcnn.ops`.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Float, UInt8

from jaxcnn.ops import pool
from jaxcnn.ops.bias import add_bias
from jaxcnn.ops.conv import conv
from jaxcnn.ops.layout import in_hwnc, to_hwnc, to_nhwc
from jaxcnn.ops.norm import batch_norm_act

type Images = UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"]
type Features = Float[Array, "batch height width channels"]
type Normalisable = Float[Array, "*batch channels"]


class Conv(nn.Module):
    """A convolution padded to keep the size of the map, with even kernels at the bottom and right.

    Attributes:
      features: channels of the result.
      kernel_size: rows and columns of the kernel.
      dtype: what it computes in.
      cpu: compute by CPU kernels.
      use_bias: add a number to each channel.
      before_norm: a batch normalisation follows and cancels the bias, which therefore stays zero as it starts. It is
        a parameter, as in Keras, but not added: that would take another pass over the map.
      kernel_init: initial kernel.
    """

    features: int
    kernel_size: tuple[int, int]
    dtype: Dtype
    cpu: bool
    use_bias: bool = True
    before_norm: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch height width {self.features}"]:
        """Convolves a map."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features), jnp.float32)
        y = conv(x.astype(self.dtype), jnp.asarray(kernel), cpu=self.cpu)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if self.before_norm:
            return y
        if self.cpu:
            return in_hwnc(lambda y: add_bias(y, bias), y, cpu=True)
        return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)


class BatchNormAct(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), then the sum with a residual, then a LeakyReLU.

    All three are one module because they are bound by memory, and a CPU kernel does them together. Statistics and
    the affine map are computed in float32, and the variance is the biased one, in the running average too, as in
    Keras.

    Attributes:
      use_running_average: normalise by the running statistics instead of the batch's.
      momentum: decay of the running statistics, per batch.
      epsilon: added to the variance.
      dtype: of the result.
      cpu: compute by CPU kernels.
      negative_slope: of the activation, from 0 (ReLU) to 1 (none).
      scale_init: initial scale; zeros make a residual block start as the identity.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: Dtype
    cpu: bool = False
    negative_slope: float = 1.0
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Normalisable, residual: Normalisable | None = None) -> Normalisable:
        """Normalises each channel over all other axes."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        maps = (x,) if residual is None else (x, residual)
        if self.use_running_average:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            affine = partial(self._affine_act, factor=factor, offset=bias - running_mean.value * factor)
            return in_hwnc(affine, *maps, cpu=self.cpu and x.ndim == 4)
        normalise = self._normalise_on_cpu if self.cpu else self._normalise
        y, mean, var = normalise(scale, bias, *maps)
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return y

    def _normalise(self, scale: Array, bias: Array, *maps: Normalisable) -> tuple[Normalisable, Array, Array]:
        wide, axes = maps[0].astype(jnp.float32), tuple(range(maps[0].ndim - 1))
        mean = wide.mean(axes)
        # One pass over the map instead of two; rounding can take it just below zero.
        var = jnp.maximum(lax.square(wide).mean(axes) - lax.square(mean), 0)
        factor = scale * lax.rsqrt(var + self.epsilon)
        return self._affine_act(*maps, factor=factor, offset=bias - mean * factor), mean, var

    def _normalise_on_cpu(self, scale: Array, bias: Array, *maps: Normalisable) -> tuple[Normalisable, Array, Array]:
        turned = [to_hwnc(each) if each.ndim == 4 else each for each in maps]
        y, mean, var = batch_norm_act(
            turned[0], scale, bias, *turned[1:], epsilon=self.epsilon, negative_slope=self.negative_slope
        )
        return (to_nhwc(y) if y.ndim == 4 else y).astype(self.dtype), mean, var

    def _affine_act(self, x: Normalisable, *residual: Normalisable, factor: Array, offset: Array) -> Normalisable:
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        y = x.astype(jnp.float32) * factor.reshape(shape) + offset.reshape(shape)
        for each in residual:
            y = y + each.astype(jnp.float32)
        return activate(y, negative_slope=self.negative_slope).astype(self.dtype)


class SpatialDropout(nn.Module):
    """Drops whole channels of a map, and scales what is left to the same mean (Tompson et al. 2015).

    Attributes:
      rate: share of the channels.
      deterministic: drop none.
      cpu: turn the map as CPU kernels do.
    """

    rate: float
    deterministic: bool
    cpu: bool

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Drops with the random stream `dropout`."""
        drop = nn.Dropout(self.rate, broadcast_dims=(0, 1) if self.cpu else (1, 2), deterministic=self.deterministic)
        return in_hwnc(drop, x, cpu=self.cpu)


def activate(x: Array, *, negative_slope: float) -> Array:
    """The LeakyReLU; 0 is the ReLU, 1 nothing."""
    if negative_slope == 1:
        return x
    return nn.leaky_relu(x, negative_slope) if negative_slope > 0 else nn.relu(x)


def max_pool(x: Features, *, cpu: bool = False) -> Float[Array, "batch _height _width channels"]:
    """The maximum of each 2x2 patch. An odd last row or column is dropped; a side of 1 stays."""
    if cpu:
        return in_hwnc(pool.max_pool, x, cpu=True)
    window = _halving_window(x)
    largest: Array = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
    return largest


def avg_pool(x: Features, *, cpu: bool = False) -> Float[Array, "batch _height _width channels"]:
    """The mean of each 2x2 patch. An odd last row or column is dropped, as in Keras; a side of 1 stays."""
    if cpu:
        return in_hwnc(pool.avg_pool, x, cpu=True)
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
