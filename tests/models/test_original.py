"""The original networks against the parameter counts of their log and the layers of their description."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcnn.models.original import ORIGINALS, BlockSpec, ConvSpec, DenseSpec, NetworkSpec, Original
from jaxcnn.models.registry import count_parameters

COUNTS = {
    "seed": (754_048, 758_224),
    "prototype1": (1_651_376, None),
    "prototype2": (625_820, 629_028),
    "prototype4": (754_048, 758_224),
    "prototype5": (1_390_592, 1_396_560),
}
PICTURES = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)


def network(spec: NetworkSpec, classes: int = 200) -> Original:
    return Original(spec=spec, classes=classes, dtype=jnp.float32)


@cache
def shapes(name: str) -> dict:
    return jax.eval_shape(lambda x: network(ORIGINALS[name]).init(jax.random.key(0), x, False), PICTURES)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_agree_with_the_log(name: str) -> None:
    trainable, total = COUNTS[name]
    variables = shapes(name)
    assert count_parameters(variables["params"]) == trainable
    if total is not None:
        assert count_parameters(variables) == total


def operations(name: str) -> list[str]:
    """The network's layers in the order in which they run."""
    model, variables = network(ORIGINALS[name]), shapes(name)
    apply = partial(model.apply, train=False)
    kinds = {
        "conv_general_dilated": lambda e: "conv {0}x{1} {3}".format(*e.invars[1].aval.shape),
        "dot_general": lambda e: f"dense {e.outvars[0].aval.shape[-1]}",
        "rsqrt": lambda e: "norm",
        "reduce_window_sum": lambda e: "pool",
        "leaky_relu": lambda e: "act",
    }
    found = []
    for eqn in jax.make_jaxpr(apply)(variables, PICTURES).jaxpr.eqns:
        kind = kinds.get(eqn.params.get("name", eqn.primitive.name))
        found += [kind(eqn)] if kind else []
    return found


def convolution(kernel: int, channels: int) -> list[str]:
    return [f"conv {kernel}x{kernel} {channels}", "norm", "act"]


def bottleneck_block(channels: int, compressed: int) -> list[str]:
    pair = [f"conv 1x1 {compressed}", *convolution(3, channels), *convolution(1, channels)]
    return [*convolution(3, channels), *pair, *pair, "pool"]


HEAD = ["dense 600", "norm", "act", "dense 400", "norm", "act", "dense 200"]


def test_seed_has_every_layer_in_its_place() -> None:
    expected = [*convolution(2, 32) * 4, "pool", *bottleneck_block(64, 32), *bottleneck_block(128, 64), *HEAD]
    assert operations("seed") == expected
    assert operations("prototype4") == expected


def test_prototype1_normalises_its_logits() -> None:
    blocks = [layer for width in (32, 64, 128, 256) for layer in [*convolution(3, width) * 2, "pool"]]
    assert operations("prototype1") == [*blocks, *HEAD, "norm"]


def test_prototype2_and_3_differ_in_head_and_dropout() -> None:
    body = [*convolution(3, 16) * 2, "pool"]
    for width in (32, 64, 128):
        body += [*convolution(3, width // 2) * 2, *convolution(3, width) * 2, "pool"]
    assert operations("prototype2") == [
        *body, "dense 400", "norm", "act", "dense 300", "norm", "act", "dense 200", "norm"
    ]  # fmt: skip
    assert operations("prototype3") == [*body, "dense 512", "norm", "act", "dense 200"]


def test_prototype5_widens_after_its_second_block() -> None:
    assert operations("prototype5") == [
        *convolution(2, 32) * 4, "pool", *bottleneck_block(64, 32),
        *convolution(1, 128), *convolution(2, 128), *bottleneck_block(256, 64), *HEAD,
    ]  # fmt: skip


def test_prototype6_is_the_final_network_with_a_single_norm() -> None:
    seed, found = operations("seed"), operations("prototype6")
    assert found.index("norm") == 1
    assert found.count("norm") == 1
    assert [layer for layer in found if layer != "norm"] == [layer for layer in seed if layer != "norm"]


@pytest.mark.parametrize(
    ("name", "body", "head"),
    [
        ("seed", (0, 0.1, 0.1), (0.35, 0.2)),
        ("prototype1", (0, 0, 0, 0), (0.35, 0.2)),
        ("prototype2", (0, 0, 0, 0), (0.35, 0.2)),
        ("prototype3", (0, 0.1, 0.1, 0.1), (0.35,)),
        ("prototype5", (0, 0.1, 0, 0.1), (0.35, 0.2)),
        ("prototype6", (0, 0, 0), (0.35, 0.2)),
    ],
)
def test_dropout_rates(name: str, body: tuple[float, ...], head: tuple[float, ...]) -> None:
    assert tuple(block.dropout for block in ORIGINALS[name].blocks) == body
    assert tuple(hidden.dropout for hidden in ORIGINALS[name].hidden) == head


TINY = NetworkSpec(blocks=(BlockSpec((ConvSpec(2, 4),)),), hidden=(DenseSpec(6, dropout=0.0),))


def test_initialisation_is_that_of_keras() -> None:
    params = network(TINY, classes=300).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), False)["params"]
    for path, leaf in flatten_dict(params).items():
        if path[-1] == "kernel":
            area = np.prod(leaf.shape[:-2])
            limit = np.sqrt(6 / (area * (leaf.shape[-2] + leaf.shape[-1])))
            assert np.abs(leaf).max() <= limit
            assert np.abs(leaf).max() > 0.8 * limit
        else:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, path[-1] == "scale"))


def test_even_kernels_are_padded_at_the_bottom_and_right() -> None:
    """By hand: a 2x2 convolution that takes the lower right pixel of its window moves the picture up and left."""
    spec = NetworkSpec(blocks=(BlockSpec((ConvSpec(2, 1, norm=False, activation=False),), pool=False),), hidden=())
    model = network(spec, classes=1)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, 0, 0] = 255  # Moved out of the picture.
    images[1, 7, 7] = 255  # Moved to row and column 6.
    params = {
        "block_0": {"conv_0": {"kernel": jnp.zeros((2, 2, 3, 1)).at[1, 1].set(1.0), "bias": jnp.zeros(1)}},
        "classifier": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)},
    }
    logits = model.apply({"params": params}, jnp.asarray(images), False)
    np.testing.assert_allclose(logits[:, 0], [0, 3 / 64], rtol=1e-6)


def test_spatial_dropout_drops_whole_channels() -> None:
    spec = BlockSpec((ConvSpec(1, 256, norm=False, activation=False),), pool=False)
    second = BlockSpec((), dropout=0.5, pool=False)
    model = network(NetworkSpec(blocks=(spec, second), hidden=()), classes=1)
    images = np.random.default_rng(0).integers(1, 256, (2, 8, 8, 3), dtype=np.uint8)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), jnp.asarray(images), False)

    def dropped(train: bool) -> np.ndarray:
        rngs = {"dropout": jax.random.key(1)}
        _, state = model.apply(variables, jnp.asarray(images), train, rngs=rngs, capture_intermediates=True)
        before, after = (state["intermediates"][f"block_{i}"]["__call__"][0] for i in range(2))
        zero = np.asarray(after == 0)
        np.testing.assert_allclose(after, np.where(zero, 0, before * (2 if train else 1)), rtol=1e-6)
        return zero

    zero = dropped(train=True)
    np.testing.assert_array_equal(zero.any((1, 2)), zero.all((1, 2)))
    assert 0.35 < zero.all((1, 2)).mean() < 0.65
    assert not dropped(train=False).any()


def test_pictures_are_scaled_to_one() -> None:
    spec = NetworkSpec(blocks=(), hidden=())
    params = {"classifier": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
    images = jnp.full((1, 8, 8, 3), jnp.array([0, 51, 255], jnp.uint8))
    for typed in (images, images.astype(jnp.float32)):
        logits = network(spec, classes=3).apply({"params": params}, typed, False)
        np.testing.assert_allclose(logits, [[0, 0.2, 1]], rtol=1e-6)


@pytest.mark.parametrize("norm", [True, False])
def test_normalisation_and_activation_by_hand(norm: bool) -> None:
    """One dense layer as the identity: momentum .99, epsilon 1e-3, slope .3."""
    spec = NetworkSpec(blocks=(), hidden=(DenseSpec(3, dropout=0.0, norm=norm),))
    identity = {"kernel": jnp.eye(3), "bias": jnp.full(3, -0.5)}
    variables = {"params": {"dense_0": identity, "classifier": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}}
    if norm:
        variables["params"]["dense_norm_0"] = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
        variables["batch_stats"] = {"dense_norm_0": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    colours = np.array([[0, 51, 255], [255, 102, 0]], np.uint8)
    images = jnp.asarray(np.broadcast_to(colours[:, None, None], (2, 8, 8, 3)))
    logits, updates = network(spec, classes=3).apply(variables, images, True, mutable=["batch_stats"])
    x = colours / 255 - 0.5
    y = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) if norm else x
    np.testing.assert_allclose(logits, np.where(y > 0, y, 0.3 * y), rtol=1e-4, atol=1e-6)
    if norm:
        found = updates["batch_stats"]["dense_norm_0"]
        np.testing.assert_allclose(found["mean"], 0.01 * x.mean(0), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(found["var"], 0.99 + 0.01 * x.var(0), rtol=1e-4)
