"""What the networks share: convolution, normalisations, an activation, spatial dropout and stochastic depth.

A network is plain Flax on these layers and on the pools of `jaxcnn.ops.pool`. What it does to a map besides, such as an
activation or a sum of two maps, goes through `jaxcnn.ops.layout.pointwise`, so that CPU kernels need not transpose it.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Float, Float32, UInt8

from jaxcnn.ops.bias import add_bias
from jaxcnn.ops.conv import conv
from jaxcnn.ops.device_sum import dot_general, on_several_devices
from jaxcnn.ops.layout import pointwise, spatial_axes
from jaxcnn.ops.norm import IDENTITY, Activation, affine_act, batch_norm_act
from jaxcnn.ops.window import Pairs

type Images = UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"]
"""Pictures in RGB, from 0 to 255."""
type Features = Float[Array, "batch height width channels"]
"""A feature map, called map in this package."""
type Layer = Callable[..., Callable[..., Array]]
"""A layer class with its settings bound by `partial`; called with the remaining ones, it makes a module."""
type Normalisable = Float[Array, "*batch channels"]
"""A map, tokens, or one row of features for each example."""
type PerChannel = Float[Array, " channels"]


class Conv(nn.Module):
    """A convolution. Where its padding is odd, the one zero more is at the bottom and right, as in TensorFlow.

    Attributes:
      features: channels of the result.
      kernel_size: rows and columns of the kernel.
      dtype: what it computes in, and the type of the result.
      strides: step of the kernel, the same in rows and columns.
      padding: `SAME` (as many results as pixels, divided by the strides), `VALID`, or the number of zeros before and
        after the rows, and before and after the columns.
      groups: parts of the channels that are convolved independently; as many as channels is depthwise.
      use_bias: add a bias to each channel.
      before_norm: a batch normalisation follows and cancels the bias. The bias is then a parameter, as in Keras, but is
        not added, which would take another pass over the map; it stays at its initial zero.
      kernel_init: initial kernel.
    """

    features: int
    kernel_size: tuple[int, int]
    dtype: Dtype
    strides: int = 1
    padding: str | Pairs = "SAME"
    groups: int = 1
    use_bias: bool = True
    before_norm: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "batch _height _width {self.features}"]:
        """Convolves a map."""
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = jnp.asarray(self.param("kernel", self.kernel_init, shape, jnp.float32))
        strides = (self.strides, self.strides)
        y = conv(x.astype(self.dtype), kernel, strides=strides, padding=self.padding, groups=self.groups)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y if self.before_norm else add_bias(y, jnp.asarray(bias))


class Dense(nn.Module):
    """A dense layer over the channels. Flax' own would sum the gradient of its bias in the type it computes in.

    Attributes:
      features: channels of the result.
      dtype: what it computes in, and the type of the result.
      kernel_init: initial kernel.
    """

    features: int
    dtype: Dtype
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Normalisable) -> Float[Array, "*batch {self.features}"]:
        """Computes tokens, or one row of features for each example."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = dot_general(x.astype(self.dtype), jnp.asarray(kernel), (((x.ndim - 1,), (0,)), ((), ())))
        # In float32, so that the gradient of the bias is summed in it, also over several devices.
        row = jnp.asarray(bias).reshape(*(1,) * (y.ndim - 1), -1)
        return (y.astype(jnp.float32) + row).astype(self.dtype)


class BatchNormAct(nn.Module):
    """Batch normalisation, then the sum with a residual, then an activation (Ioffe and Szegedy 2015).

    Statistics and result are computed in float32; the result is rounded to the type of the input. The variance is the
    biased one, also in the running average, as in Keras.

    Attributes:
      use_running_average: normalise by the running statistics instead of the batch's.
      momentum: decay of the running statistics, per batch.
      epsilon: added to the variance.
      activation: a LeakyReLU, the ReLU6 or the identity.
      scale_init: initial scale; zeros make a residual block start as the identity.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    activation: Activation = IDENTITY
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Normalisable, residual: Normalisable | None = None) -> Normalisable:
        """Normalises each channel over all other axes, and updates the running statistics in training."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        # Inference: the statistics are constants, so one factor and one offset for each channel remain.
        if self.use_running_average:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            offset = bias - running_mean.value * factor
            return affine_act(x, factor, offset, residual, activation=self.activation)
        # Training: the statistics of the batch normalise it, and move the running ones.
        # The running mean is near the batch's, and all devices have it.
        near = running_mean.value if on_several_devices() else None
        y, mean, var = batch_norm_act(
            x, scale, bias, residual, epsilon=self.epsilon, activation=self.activation, near_mean=near
        )
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return y


class LayerNorm(nn.Module):
    """Layer normalisation: each position over its channels (Ba et al. 2016).

    It is computed in float32, the variance from the squared differences; the result is rounded to the type of the
    input.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Normalisable) -> Normalisable:
        """Normalises a map, tokens, or one row of features for each example."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return pointwise(self._normalise, x, jnp.asarray(scale), jnp.asarray(bias))

    @nn.nowrap
    def _normalise(self, x: Normalisable, scale: PerChannel, bias: PerChannel) -> Normalisable:
        wide = x.astype(jnp.float32)
        difference = wide - wide.mean(-1)[..., None]
        deviation = jnp.sqrt(lax.square(difference).mean(-1)[..., None] + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        return (difference / deviation * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


class SpatialDropout(nn.Module):
    """Drops whole channels of a map at random, and scales the others to keep the mean (Tompson et al. 2015).

    Attributes:
      rate: share of the channels to drop.
      deterministic: drop none.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Draws from the random stream `dropout`."""
        drop = nn.Dropout(self.rate, broadcast_dims=spatial_axes(), deterministic=self.deterministic)
        return pointwise(drop, x)


class StochasticDepth(nn.Module):
    """Drops the branch of a residual block for some pictures of a batch (Huang et al. 2016).

    The branches that stay are scaled to keep the mean.

    Attributes:
      rate: probability to drop.
      deterministic: drop none.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, branch: Normalisable) -> Normalisable:
        """Draws from the random stream `dropout`, one number for each picture."""
        if self.deterministic or self.rate == 0:
            return branch
        shape = (branch.shape[0], *(1,) * (branch.ndim - 1))
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return pointwise(lambda x, kept: jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype), branch, kept)


def gelu(x: Normalisable) -> Normalisable:
    """Computes x times the normal distribution function of x (Hendrycks and Gimpel 2016), as PyTorch does.

    `jax.nn.gelu` computes the far negative tail to more digits, by `erfc`, which takes CPUs three times as long.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide / math.sqrt(2)))).astype(x.dtype)


def global_avg_pool(x: Features) -> Float[Array, "batch channels"]:
    """The mean of each channel of each map; in bfloat16 it is summed in float32."""
    return x.mean((1, 2))


def channel_moments(
    x: Float[Array, "batch *positions channels"],
) -> tuple[Float32[Array, "batch channels"], Float32[Array, "batch channels"]]:
    """The mean and the standard deviation of each channel over all positions."""
    wide = x.astype(jnp.float32)
    axes = tuple(range(1, x.ndim - 1))
    mean = wide.mean(axes, keepdims=True)
    # Where all positions are equal, the root would have an infinite gradient.
    deviation = jnp.sqrt(lax.square(wide - mean).mean(axes) + 1e-6)
    return mean.reshape(deviation.shape), deviation


def space_to_depth(x: Features, *, side: int) -> Float[Array, "batch _height _width _channels"]:
    """Folds patches of side x side pixels into channels; zeros at the bottom and right complete the last patches."""
    batch, height, width, channels = x.shape
    if height % side or width % side:
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    patches = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, rows, columns, side * side * channels)
