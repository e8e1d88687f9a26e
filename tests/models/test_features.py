"""Features of every network: the head applied to them gives the logits, and alone it is left out."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import ModelConfig, ModelName
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.models.features import group_widths, pooled_features

FAMILIES = ["resnet", "efficientnet_lite0", "resnet18", "mobilenet_v3_small", "convnext_atto", "vit_tiny"]
IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8)


def built(name, *, classes=5, pooling="last"):
    shape = {"widths": (8, 12), "blocks": (1, 1)} if name == "resnet" else {}
    return registry.build(ModelConfig(name=name, pooling=pooling, **shape), classes=classes)


def shapes(network):
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), IMAGES)


@pytest.mark.parametrize(
    "name",
    # The others are larger, and take long to trace.
    [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.run) for name in typing.get_args(ModelName)],
)
def test_every_network_has_features_as_wide_as_its_head(name):
    network = built(name)
    variables = shapes(network)
    found = jax.eval_shape(lambda tree, x: pooled_features(network, tree, x), variables, IMAGES)
    assert (found.shape, found.dtype) == ((2, variables["params"]["classifier"]["kernel"].shape[0]), jnp.float32)


@pytest.mark.run
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_but_the_original_one_can_pool_all_blocks(name):
    last, every = (shapes(built(name, pooling=pooling))["params"] for pooling in ("last", "all"))
    narrow, wide = (params.pop("classifier")["kernel"].shape[0] for params in (last, every))
    # Nothing else depends on it.
    assert jax.tree.map(lambda leaf: leaf.shape, last) == jax.tree.map(lambda leaf: leaf.shape, every)
    network = built(name, pooling="all")
    groups = group_widths(network, shapes(network), IMAGES)
    assert (groups[0], sum(groups)) == (narrow, wide)
    assert groups[1::2] == groups[2::2] != ()


@pytest.mark.run
def test_all_features_are_the_last_then_mean_and_deviation_of_each_block():
    network = built("resnet", pooling="all")
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8))
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, False))(images)
    _, kept = jax.jit(
        lambda x: network.apply(
            variables, x, train=False, capture_intermediates=lambda module, _: module.name in ("stage_0", "stage_1")
        )
    )(images)
    maps = [np.asarray(kept["intermediates"][name]["__call__"][0]) for name in ("stage_0", "stage_1")]
    expected = [maps[1].mean((1, 2)), *(moment for x in maps for moment in (x.mean((1, 2)), x.std((1, 2))))]
    found = jax.jit(lambda x: pooled_features(network, variables, x))(images)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-4, atol=2e-3)


def test_maps_much_larger_than_the_last_are_not_pooled():
    network = registry.build(ModelConfig(widths=(8, 12, 10, 6), blocks=(0, 0, 0, 0), pooling="all"), classes=2)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)
    # The maps have 16x16, 8x8, 4x4 and 2x2 positions.
    assert group_widths(network, variables, images) == (6, 10, 10, 6, 6)


def test_the_original_networks_have_one_form():
    network = built("seed")
    width = shapes(network)["params"]["classifier"]["kernel"].shape[0]
    assert group_widths(network, shapes(network), IMAGES) == (width,)
    with pytest.raises(UserError, match=r"model\.pooling is 'all'; it must be last: the network 'seed' is fixed"):
        ModelConfig(name="seed", pooling="all")
    pooled = ModelConfig(pooling="all")
    assert pooled.with_shape_of(ModelConfig(name="seed")) == ModelConfig(name="seed")
    assert pooled.with_shape_of(ModelConfig(name="vit_tiny")).pooling == "all"


@pytest.mark.run
@pytest.mark.parametrize("pooling", ["last", "all"])
def test_the_head_on_the_features_gives_the_logits(pooling):
    network = built("resnet", pooling=pooling)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8))
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, False))(images)
    features = jax.jit(lambda x: pooled_features(network, variables, x))(images)
    head = variables["params"]["classifier"]
    expected = jax.jit(lambda x: network.apply(variables, x, train=False))(images)
    found = np.asarray(features) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_head_is_not_computed():
    network = built("resnet", classes=977)

    def compiled(function):
        return jax.jit(function).lower(shapes(network), IMAGES).compile().as_text()

    assert "[2,977]" in compiled(lambda tree, x: network.apply(tree, x, train=False))
    assert "[2,977]" not in compiled(lambda tree, x: pooled_features(network, tree, x))
