"""Turned maps: what is turned there and back costs nothing in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import ModelConfig
from jaxcnn.models import build
from jaxcnn.ops.layout import in_hwnc, to_hwnc, to_nhwc


def test_there_and_back():
    x = jnp.arange(120).reshape(2, 3, 4, 5)
    assert to_hwnc(x).shape == (3, 4, 2, 5)
    np.testing.assert_array_equal(to_nhwc(to_hwnc(x)), x)
    np.testing.assert_array_equal(in_hwnc(lambda x: x[:1], x, cpu=True), x[:, :1])
    np.testing.assert_array_equal(in_hwnc(lambda x: x[:1], x, cpu=False), x[:1])


@pytest.mark.parametrize("name", ["resnet", "seed", "prototype6"])
@pytest.mark.parametrize("train", [False, True])
def test_a_network_turns_its_maps_once(name, train):
    """Only at its entrance: the pictures come with the images outside, and pooled features have no sides."""
    model = build(ModelConfig(name=name), classes=5, cpu=True)
    images = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.uint8)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)

    def run(variables, images):
        return model.apply(variables, images, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})

    text = jax.jit(run).lower(variables, images).compile().as_text()
    turned = [line for line in text.splitlines() if " transpose(" in line and "dimensions={2,0,1,3}" in line]
    assert not turned
