"""Random small networks of the supported layers, exported and compared: none may differ silently."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

CHANNELS = 4
PADDINGS = st.sampled_from(["SAME", "VALID", ((1, 0), (0, 2)), ((1, 1), (1, 1))])
WINDOWS = st.tuples(st.integers(1, 3), st.integers(1, 3))
STRIDES = st.tuples(st.integers(1, 2), st.integers(1, 2))
ACTIVATIONS = {
    "relu": nn.relu,
    "leaky": nn.leaky_relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "gelu": nn.gelu,
    "neg": jnp.negative,
}

CONV = st.tuples(
    st.just("conv"), WINDOWS, STRIDES, PADDINGS, st.sampled_from([1, 2, CHANNELS]), st.integers(1, 2), st.booleans()
)
POOL = st.tuples(st.just("pool"), st.sampled_from(["max", "sum"]), WINDOWS, STRIDES, PADDINGS)
LAYERS = st.one_of(
    CONV,
    POOL,
    st.tuples(st.just("norm")),
    st.tuples(st.just("activation"), st.sampled_from(sorted(ACTIVATIONS))),
    st.tuples(st.just("residual"), st.booleans()),
    st.tuples(st.just("excite")),
    st.tuples(st.just("concatenate")),
    st.tuples(st.just("patches")),
    st.tuples(st.just("dense")),
    st.tuples(st.just("affine"), st.sampled_from([0.0, -1.5, 0.25]), st.sampled_from([0.0, 2.0])),
)


class Net(nn.Module):
    """Layers as they come; one that does not fit the map, such as a window larger than it, is left out."""

    layers: tuple[tuple[object, ...], ...]
    head: str

    @nn.compact
    def __call__(self, x):
        x = (x.astype(jnp.float32) - 100.0) / 64.0
        for kind, *options in self.layers:
            x = getattr(self, kind)(x, *options)
        if self.head == "flatten":
            return nn.Dense(3)(x.reshape(x.shape[0], -1))
        return x if self.head == "map" else nn.Dense(3)(x.mean((1, 2)))

    def conv(self, x, window, strides, padding, groups, dilation, bias):
        reach = [1 + dilation * (size - 1) for size in window]
        if not fits(x, reach) or x.shape[-1] % groups:
            return x
        return nn.Conv(
            CHANNELS, window, strides, padding, kernel_dilation=dilation, feature_group_count=groups, use_bias=bias
        )(x)

    def pool(self, x, kind, window, strides, padding):
        explicit = not isinstance(padding, str)
        if not fits(x, window) or (explicit and max(map(max, padding)) >= min(window)):
            return x
        pads = ((0, 0), *padding, (0, 0)) if explicit else padding
        start, function = (-jnp.inf, lax.max) if kind == "max" else (0.0, lax.add)
        return lax.reduce_window(x, start, function, (1, *window, 1), (1, *strides, 1), pads)

    def norm(self, x):
        return nn.BatchNorm(use_running_average=True)(x)

    def activation(self, x, name):
        return ACTIVATIONS[name](x)

    def residual(self, x, normalised):
        y = nn.Conv(x.shape[-1], (3, 3))(self.norm(x) if normalised else x)
        return x + y

    def excite(self, x):
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(x.mean((1, 2), keepdims=True)))

    def concatenate(self, x):
        return jnp.concatenate([x, nn.relu(x)], axis=-1)[..., :6]

    def patches(self, x):
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            return x
        split = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return split.reshape(batch, height // 2, width // 2, 4 * channels)

    def dense(self, x):
        return nn.Dense(CHANNELS)(x)

    def affine(self, x, scale, shift):
        vector = np.linspace(-1, 1, x.shape[-1], dtype=np.float32)[None, None, None]
        return x * (scale + vector) + shift * vector


def fits(x, window):
    return x.shape[1] >= window[0] and x.shape[2] >= window[1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LAYERS, min_size=1, max_size=5), st.sampled_from(["flatten", "map", "average"]))
def test_random_networks_compute_the_same(exported, filled, layers, head):
    module = Net(tuple(layers), head)
    variables = filled(module, jnp.zeros((1, 8, 7, 3), jnp.uint8))
    model = exported(lambda x: module.apply(variables, x), ("batch", 8, 7, 3), dtype="uint8", tolerance=3e-5)
    assert model.ops["BatchNormalization"] == 0
