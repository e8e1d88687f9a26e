"""Features of every network: the head applied to them gives the logits, and alone it is left out."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.config import ModelConfig, ModelName
from jaxcnn.models.features import pooled_features

NAMES = typing.get_args(ModelName)
IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8)


def built(name, *, classes=5):
    shape = {"widths": (8, 12), "blocks": (1, 1)} if name == "resnet" else {}
    return models.build(ModelConfig(name=name, **shape), classes=classes)


def shapes(network):
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), IMAGES)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_features_as_wide_as_its_head(name):
    network = built(name)
    variables = shapes(network)
    found = jax.eval_shape(lambda tree, x: pooled_features(network, tree, x), variables, IMAGES)
    assert (found.shape, found.dtype) == ((2, variables["params"]["classifier"]["kernel"].shape[0]), jnp.float32)


def test_the_head_on_the_features_gives_the_logits():
    network = built("resnet")
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
