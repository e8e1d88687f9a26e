"""Random small networks of the supported layers, exported and compared with JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import export

PICTURE = ("batch", 8, 7, 3)
TOLERANCE = 3e-5
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
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
    "neg": jnp.negative,
    "elu": nn.elu,
    "hard_swish": nn.hard_swish,
    "relu6": nn.relu6,
    "softplus": nn.softplus,
    "softmax": nn.softmax,
    "log_softmax": lambda x: nn.log_softmax(x, axis=1),
    "square": lambda x: x * x / (1 + jnp.abs(x)),
    "halves": lambda x: jnp.where(x > 0.5, x, 0.5 * x - 0.1),
}
NORMS = {
    "batch": lambda: nn.BatchNorm(use_running_average=True),
    "layer": lambda: nn.LayerNorm(),
    "layer_slow": lambda: nn.LayerNorm(use_fast_variance=False, use_bias=False),
    "group": lambda: nn.GroupNorm(num_groups=2),
    "instance": lambda: nn.InstanceNorm(),
    "rms": lambda: nn.RMSNorm(),
}
MOVES = {
    "flip": lambda x: jnp.flip(x, 2),
    "swap": lambda x: x.swapaxes(1, 2),
    "roll": lambda x: jnp.roll(x, 1, (1, 2)),
    "crop": lambda x: x[:, 1:, :-1] if min(x.shape[1:3]) > 2 else x,
    "stride": lambda x: x[:, ::2],
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0))),
    "reflect": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge"),
    "larger": lambda x: jax.image.resize(x, (x.shape[0], x.shape[1] * 2, x.shape[2], x.shape[3]), "bilinear"),
    "nearest": lambda x: jnp.repeat(x, 2, axis=2),
    "shuffle": lambda x: x.reshape(*x.shape[:3], 2, -1).swapaxes(3, 4).reshape(x.shape) if x.shape[-1] % 2 == 0 else x,
    "pick": lambda x: x[..., np.arange(x.shape[-1])[::-1]],
    "halve": lambda x: sum(jnp.split(x, 2, axis=-1)) if x.shape[-1] % 2 == 0 else x,
    "batch": lambda x: x - x.mean(0, keepdims=True) if x.shape[1] == 1 else x,
    "scan": lambda x: jnp.cumsum(x, axis=1) / x.shape[1],
    "sort": lambda x: jnp.sort(x, axis=2),
}

CONV = st.tuples(
    st.just("conv"), WINDOWS, STRIDES, PADDINGS, st.sampled_from([1, 2, CHANNELS]), st.integers(1, 2), st.booleans()
)
POOL = st.tuples(st.just("pool"), st.sampled_from(["max", "sum"]), WINDOWS, STRIDES, PADDINGS)
LAYERS = st.one_of(
    CONV,
    POOL,
    st.tuples(st.just("norm"), st.sampled_from(sorted(NORMS))),
    st.tuples(st.just("move"), st.sampled_from(sorted(MOVES))),
    st.tuples(st.just("up"), WINDOWS, STRIDES, st.sampled_from(["SAME", "VALID"])),
    st.tuples(st.just("attention")),
    st.tuples(st.just("extremes")),
    st.tuples(st.just("activation"), st.sampled_from(sorted(ACTIVATIONS))),
    st.tuples(st.just("residual"), st.booleans()),
    st.tuples(st.just("excite")),
    st.tuples(st.just("concatenate")),
    st.tuples(st.just("patches")),
    st.tuples(st.just("dense")),
    st.tuples(st.just("affine"), st.sampled_from([0.0, -1.5, 0.25]), st.sampled_from([0.0, 2.0])),
)


class Net(nn.Module):
    """Layers in a random order; a layer that does not fit the feature map, such as a larger window, is left out."""

    layers: tuple[tuple[object, ...], ...]
    head: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = (x.astype(self.dtype) - 100.0) / 64.0
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

    def norm(self, x, name="batch"):
        return NORMS[name]()(x) if name != "group" or x.shape[-1] % 2 == 0 else x

    def move(self, x, name):
        return MOVES[name](x)

    def up(self, x, window, strides, padding):
        return nn.ConvTranspose(CHANNELS, window, strides, padding)(x) if x.shape[1] < 16 else x

    def attention(self, x):
        tokens = nn.Dense(CHANNELS)(x).reshape(x.shape[0], -1, CHANNELS)
        mixed = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(tokens))
        return (tokens + mixed).reshape(*x.shape[:3], CHANNELS)

    def extremes(self, x):
        return x * nn.sigmoid(nn.Conv(1, (3, 3))(jnp.stack([x.max(-1), x.mean(-1)], axis=-1)))

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


NETWORKS = given(st.lists(LAYERS, min_size=1, max_size=6), st.sampled_from(["flatten", "map", "average"]))
LENIENT = settings(suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def compare(exported, filled, own_error, by_definition, tmp_path_factory):
    """compare(layers, head): exports and compares a network; an error message has what it takes to build it again."""
    folder = tmp_path_factory.mktemp("random_networks")

    def compare_recorded(layers, head):
        module = Net(tuple(layers), head)
        variables = filled(module, jnp.zeros((1, 8, 7, 3), jnp.uint8))
        fn = lambda x: module.apply(variables, x)  # noqa: E731
        try:
            check(exported, fn, by_definition, doubt=lambda: own_error(module, variables, PICTURE))
        except Exception as error:
            # Hypothesis tries simpler and simpler networks. It shows the last one, whose file is kept.
            raise AssertionError(f"Net({module.layers}, {head!r}), {record(fn, folder / 'network.onnx')}") from error

    return compare_recorded


def check(exported, fn, by_definition, *, doubt):
    try:
        model = exported(fn, PICTURE, dtype="uint8", tolerance=TOLERANCE)
    except AssertionError:
        # Rounding errors may be magnified, JAX's or the runtime's: onnxruntime's Sigmoid has an absolute error of 1e-7.
        # The model is right if ONNX's reference implementation computes what JAX does.
        model = exported(fn, PICTURE, dtype="uint8", tolerance=TOLERANCE + 4 * doubt(), runners=by_definition)
        exported(fn, PICTURE, dtype="uint8", tolerance=0.02)
    assert model.ops["BatchNormalization"] == 0


def record(fn, path):
    """Writes the model of a network for any batch size; returns where it is, or why there is none."""
    path.unlink(missing_ok=True)
    try:
        path.write_bytes(export.to_onnx(fn, {"x0": ("uint8", PICTURE)}).SerializeToString())
    except Exception as error:
        return f"not exported: {type(error).__name__}: {error}"
    return f"exported to {path}"


@pytest.mark.run
@settings(LENIENT, max_examples=25)
@NETWORKS
def test_random_networks_compute_the_same(compare, layers, head):
    compare(layers, head)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(LENIENT, max_examples=2000)
@NETWORKS
def test_two_thousand_random_networks_compute_the_same(compare, layers, head):
    compare(layers, head)


LAYERS_OF_A_FAILURE = [("dense",), ("activation", "relu")]


def test_a_network_that_fails_is_recorded(compare, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "relu", lambda x: jax.pure_callback(lambda x: x, x, x))
    message = r"^Net\(\(\('dense',\), \('activation', 'relu'\)\), 'map'\), not exported: UnsupportedError: .*callback"
    with pytest.raises(AssertionError, match=message):
        compare(LAYERS_OF_A_FAILURE, "map")


def test_a_network_that_differs_is_recorded(compare, monkeypatch):
    calls = iter(range(100))
    # This is another function each time it is traced.
    monkeypatch.setitem(ACTIVATIONS, "relu", lambda x: x + next(calls))
    with pytest.raises(AssertionError) as caught:
        compare(LAYERS_OF_A_FAILURE, "map")
    assert str(caught.value).startswith("Net((('dense',), ('activation', 'relu')), 'map'), exported to ")
    path = str(caught.value).split("exported to ")[1]
    onnx.checker.check_model(onnx.load(path), full_check=True)
