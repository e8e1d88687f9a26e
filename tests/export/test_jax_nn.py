"""Every function of jax.nn, on floats of several ranks, and on uint8 where JAX accepts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import nn


@pytest.fixture(autouse=True)
def lenient_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


MATRIX, MAP, SEQUENCE = ("batch", 6), ("batch", 4, 4, 6), ("batch", 5, 6)
NOT_EXPORTED = {
    "get_scaled_dot_general_config": "returns a configuration, not an array",
    "initializers": "a module whose functions make parameters, before the export",
}

ACTIVATIONS = {
    **{
        name: getattr(nn, name)
        for name in (
            "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid log_softmax "
            "logmeanexp logsumexp mish relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus "
            "sparse_sigmoid squareplus standardize swish tanh"
        ).split()
    },
    "celu-alpha": lambda x: nn.celu(x, 0.5),
    "elu-alpha": lambda x: nn.elu(x, 2.0),
    "gelu-exact": lambda x: nn.gelu(x, approximate=False),
    "glu-axis": lambda x: nn.glu(x, axis=1) if x.ndim == 4 else nn.glu(x),
    "leaky_relu-slope": lambda x: nn.leaky_relu(x, 0.3),
    "log1mexp": lambda x: nn.log1mexp(jnp.abs(x.astype(jnp.float32)) + 0.01),
    "log_softmax-axis": lambda x: nn.log_softmax(x, axis=1),
    "logsumexp-axis": lambda x: nn.logsumexp(x, axis=-1, keepdims=True),
    "logsumexp-weights": lambda x: nn.logsumexp(x, axis=-1, b=np.arange(1.0, 7.0, dtype=np.float32)),
    "logsumexp-signs": lambda x: nn.logsumexp(
        x, axis=-1, b=np.array([1, -2, 1, -1, 3, 1], np.float32), return_sign=True
    )[0],
    "logmeanexp-axis": lambda x: nn.logmeanexp(x, axis=1),
    "softmax-axis": lambda x: nn.softmax(x, axis=1),
    "softmax-axes": lambda x: nn.softmax(x, axis=tuple(range(1, x.ndim))),
    "softmax-where": lambda x: nn.softmax(x, axis=-1, where=np.arange(6) < 4),
    "log_softmax-where": lambda x: nn.log_softmax(x, axis=-1, where=jnp.ones_like(x, bool)),
    "squareplus-b": lambda x: nn.squareplus(x, 1.0),
    "standardize-axis": lambda x: nn.standardize(x, axis=1, epsilon=1e-3),
    "standardize-mean": lambda x: nn.standardize(x, mean=jnp.float32(0.5), variance=jnp.float32(2.0)),
}


@pytest.mark.parametrize("shape", [MATRIX, MAP], ids=["matrix", "map"])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation(exported, name, shape):
    exported(ACTIVATIONS[name], shape, tolerance=2e-6)


@pytest.mark.parametrize("name", ["gelu", "relu", "silu", "softmax", "logsumexp", "mish", "hard_swish"])
def test_activation_of_a_static_vector(exported, name):
    exported(ACTIVATIONS[name], (6,))


TAKE_BYTES = (
    "celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log1mexp log_sigmoid log_softmax "
    "logsumexp mish relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus "
    "standardize tanh"
).split()


# JAX subtracts infinity from uint8.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("name", TAKE_BYTES)
def test_activation_of_bytes(exported, name):
    try:
        jax.eval_shape(ACTIVATIONS[name], jax.ShapeDtypeStruct((2, 6), jnp.uint8))
    except TypeError as error:
        pytest.skip(f"not in jax: {error}")
    exported(ACTIVATIONS[name], MATRIX, dtype="uint8")


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool", "uint8"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(exported, axis, dtype):
    exported(lambda x: nn.one_hot(x, 7, axis=axis, dtype=dtype), MATRIX, dtype="uint8")


def test_one_hot_of_indices_out_of_range(exported):
    exported(lambda x: nn.one_hot((x * 4).astype(jnp.int32), 3), SEQUENCE)


HEADS = ("batch", 5, 2, 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"mask": np.tril(np.ones((1, 1, 5, 5), bool))},
        {"bias": np.linspace(-1, 1, 25, dtype=np.float32).reshape(1, 1, 5, 5)},
        {"local_window_size": (2, 1)},
        {"query_seq_lengths": np.array([4, 5, 3], np.int32), "key_value_seq_lengths": np.array([5, 2, 3], np.int32)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_dot_product_attention(exported, options):
    batch = 3 if "query_seq_lengths" in options else "batch"
    exported(lambda q, k, v: nn.dot_product_attention(q, k, v, **options), *[(batch, *HEADS[1:])] * 3)


def test_dot_product_attention_of_groups_and_without_a_batch(exported):
    exported(lambda q, k: nn.dot_product_attention(q, k, k), ("batch", 5, 4, 3), ("batch", 6, 2, 3))
    exported(lambda q: nn.dot_product_attention(q, q, q), (5, 2, 3))


def test_products_of_scaled_blocks(exported):
    scales = np.array([[[0.5, 2.0]]], np.float32)
    exported(
        lambda x, y: nn.scaled_matmul(x, y, jnp.ones((1, 4, 2)), jnp.ones((1, 3, 2)) * scales), (1, 4, 64), (1, 3, 64)
    )
    config = nn.get_scaled_dot_general_config("mxfp8")
    contract = (((1,), (1,)), ((), ()))
    exported(lambda x, y: nn.scaled_dot_general(x, y, contract, configs=[config] * 3), (4, 64), (3, 64))


def test_no_function_is_left_out():
    tested = {name.split("-")[0] for name in ACTIVATIONS} | {
        "one_hot",
        "dot_product_attention",
        "scaled_matmul",
        "scaled_dot_general",
    }
    public = {name for name in dir(nn) if not name.startswith("_")}
    assert public - tested == NOT_EXPORTED.keys()
