"""The layout of the CPU kernels: what is transposed there and back costs nothing in between."""

import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import ModelConfig
from jaxcnn.models.layers import global_avg_pool
from jaxcnn.models.registry import Network, build
from jaxcnn.ops.conv import conv
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.layout import in_hwnc, pointwise, spatial_axes, to_hwnc, to_nhwc

MAP = jnp.arange(120).reshape(2, 3, 4, 5)


def test_there_and_back():
    assert to_hwnc(MAP).shape == (3, 4, 2, 5)
    np.testing.assert_array_equal(to_nhwc(to_hwnc(MAP)), MAP)


def test_in_hwnc_transposes_maps_and_leaves_other_arrays_alone():
    channels = jnp.arange(5)
    rows, unchanged = in_hwnc(lambda x, channels: (x[:1], channels), MAP, channels)
    np.testing.assert_array_equal(rows, MAP[:, :1])
    np.testing.assert_array_equal(unchanged, channels)


@pytest.mark.parametrize(("enabled", "shape"), [(True, (3, 4, 2, 5)), (False, (2, 3, 4, 5))])
def test_pointwise_functions_see_the_layout_of_the_operations_around_them(enabled, shape):
    seen = []

    def add_gate(x, gate):
        seen.append(x.shape)
        return x + gate

    gate = MAP[:, :1, :1]
    with use_cpu_kernels(enabled):
        np.testing.assert_array_equal(pointwise(add_gate, MAP, gate), MAP + gate)
        assert pointwise(lambda x: x.sum(spatial_axes()), MAP).shape == (2, 5)
    assert seen == [shape]


class Mixed(Network, kw_only=True):
    """Operations of other families: depthwise convolution, squeeze-and-excitation, hard-swish, LayerNorm, GELU."""

    @nn.compact
    def __call__(self, images, train):
        kernel = self.param("depthwise", nn.initializers.ones, (3, 3, 1, 3))
        x = conv(images.astype(jnp.float32), kernel, groups=3)
        x = pointwise(nn.hard_swish, x)
        gate = nn.sigmoid(nn.Dense(3)(global_avg_pool(x)))
        x = pointwise(operator.mul, x, gate[:, None, None])
        x = pointwise(nn.gelu, pointwise(nn.LayerNorm(), x))
        return nn.Dense(self.classes)(global_avg_pool(x))


NETWORKS = {
    name: build(ModelConfig(name=name), classes=5, cpu_kernels=True) for name in ("resnet", "seed", "prototype6")
}


def transposes(model, *, train):
    """The lines of a compiled network that bring a map into another layout than the kernels'."""
    images = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.uint8)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)

    def run(variables, images):
        return model.apply(variables, images, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})

    text = jax.jit(run).lower(variables, images).compile().as_text()
    return [line for line in text.splitlines() if " transpose(" in line and "dimensions={2,0,1,3}" in line]


@pytest.mark.parametrize(
    "model", [*NETWORKS.values(), Mixed(classes=5, cpu_kernels=True)], ids=[*NETWORKS, "other operations"]
)
@pytest.mark.parametrize("train", [False, True])
def test_a_network_is_transposed_once(model, train):
    """Only at its entrance: pictures come as NHWC, and pooled features have no layout."""
    assert transposes(model, train=train) == []


class Returned(Network, kw_only=True):
    """A convolution whose map is the result, as NHWC."""

    @nn.compact
    def __call__(self, images, train):
        return conv(images.astype(jnp.float32), self.param("kernel", nn.initializers.ones, (3, 3, 3, self.classes)))


def test_a_map_that_leaves_the_kernels_is_transposed():
    assert transposes(Returned(classes=5, cpu_kernels=True), train=False) != []
