"""ResNet-18 and -50, MobileNetV3, ConvNeXt and ViT: what their blocks compute, with and without CPU kernels."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxcnn.config import ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.models import convnext, mobilenet_v3, registry, resnet_v1, vit
from jaxcnn.models.layers import BatchNormAct, Conv, LayerNorm, StochasticDepth
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.norm import IDENTITY, RELU
from jaxcnn.ops.pool import overlapping_max_pool

CONV = partial(Conv, use_bias=False, dtype=jnp.float32)
NORM = partial(BatchNormAct, use_running_average=True, momentum=0.9, epsilon=1e-5)


class InEvaluation(nn.Module):
    """A block that is called as in evaluation."""

    block: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.block(x, False)


BLOCKS = {
    "resnet, basic": resnet_v1.Block(8, 1, False, CONV, partial(NORM, activation=RELU)),
    "resnet, bottleneck": resnet_v1.Block(8, 2, True, CONV, partial(NORM, activation=RELU)),
    "mobilenet": mobilenet_v3.InvertedBottleneck(
        mobilenet_v3.BlockSpec(5, 24, 8, squeeze=True, hard_swish=True, stride=1),
        CONV,
        partial(NORM, activation=IDENTITY),
    ),
    "convnext": InEvaluation(convnext.Block(0.0, jnp.float32)),
    "layer norm": LayerNorm(),
}


def random_variables(module: nn.Module, x: jax.Array) -> dict:
    shapes, random = jax.eval_shape(lambda: module.init(jax.random.key(0), x)), np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(random.uniform(0.2, 1, leaf.shape) * random.choice([-1, 1], leaf.shape)).astype(jnp.float32)
            if leaf.ndim > 1
            else jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        ),
        shapes,
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_the_same_with_cpu_kernels(name: str) -> None:
    module, x = BLOCKS[name], normal(3, 6, 4, 8)
    variables = random_variables(module, x)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradient(enabled: bool) -> tuple[jax.Array, jax.Array]:
        def compute(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            with use_cpu_kernels(enabled):
                y = module.apply(variables, x)
            return jnp.sin(y).sum(), y

        gradient, y = jax.grad(compute, has_aux=True)(x)
        return y, gradient

    for found, expected in zip(value_and_gradient(True), value_and_gradient(False), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_overlapping_pool_by_its_definition() -> None:
    x = np.asarray(normal(2, 5, 6, 3))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = [[padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in range(0, 6, 2)] for i in range(0, 5, 2)]
    for enabled in (False, True):
        with use_cpu_kernels(enabled):
            found = overlapping_max_pool(jnp.asarray(x))
        np.testing.assert_array_equal(found, np.moveaxis(np.asarray(expected), 2, 0))


def test_layer_norm_agrees_with_flax() -> None:
    x, params = normal(2, 3, 4, 8) + 5, {"params": {"scale": normal(8), "bias": normal(8, seed=1)}}
    expected = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False).apply(params, x)
    np.testing.assert_allclose(LayerNorm().apply(params, x), expected, rtol=1e-5, atol=1e-5)
    half = LayerNorm().apply(params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.1)


@pytest.mark.parametrize("shape", [(400, 2, 3, 4), (400, 5, 4)])
def test_stochastic_depth_drops_whole_pictures_and_keeps_the_mean(shape: tuple[int, ...]) -> None:
    drop, found = StochasticDepth(0.25, deterministic=False), []
    for enabled in (False, True):
        with use_cpu_kernels(enabled):
            found.append(np.asarray(drop.apply({}, jnp.ones(shape), rngs={"dropout": jax.random.key(0)})))
    np.testing.assert_array_equal(*found)
    rows = found[0].reshape(len(found[0]), -1)
    assert (rows == rows[:, :1]).all()
    assert set(np.unique(rows)) == {0, np.float32(1 / 0.75)}
    assert abs(rows.mean() - 1) < 0.1


def test_stochastic_depth_is_absent_in_evaluation() -> None:
    x = jnp.ones((4, 2, 3))
    assert StochasticDepth(0.9, deterministic=True).apply({}, x) is x


def test_attention_by_its_definition() -> None:
    x = normal(2, 5, 128)
    module = vit.Attention(jnp.float32)
    variables = module.init(jax.random.key(0), x)
    kernels = {name: np.asarray(layer["kernel"], np.float64) for name, layer in variables["params"].items()}
    query, key, value = np.split(np.asarray(x, np.float64) @ kernels["qkv"], 3, axis=-1)
    expected = np.zeros(x.shape)
    for head in (slice(0, 64), slice(64, 128)):
        scores = np.exp(query[..., head] @ key[..., head].swapaxes(1, 2) / 8)
        expected[..., head] = scores / scores.sum(-1, keepdims=True) @ value[..., head]
    np.testing.assert_allclose(module.apply(variables, x), expected @ kernels["projection"], atol=1e-5)


def test_positions_are_interpolated_between_grids() -> None:
    rows, columns = np.mgrid[:14, :14]
    grid = np.stack([rows, columns], -1).reshape(1, 196, 2).astype(np.float32)
    positions = jnp.concatenate([jnp.full((1, 1, 2), 99.0), grid], axis=1)
    assert vit.interpolate(positions, 14, 14) is positions
    found = np.asarray(vit.interpolate(positions, 28, 7))
    np.testing.assert_array_equal(found[0, 0], [99, 99])
    larger = found[0, 1:].reshape(28, 7, 2)
    # Away from the borders, what is linear stays so.
    np.testing.assert_allclose(larger[4:-4, 3, 0], (np.arange(28) / 2 - 0.25)[4:-4], atol=1e-3)
    np.testing.assert_allclose(larger[0, 2:-2, 1], (np.arange(7) * 2 + 0.5)[2:-2], atol=0.05)


def test_pixels_are_normalised_by_the_settings_or_the_family() -> None:
    means = {
        "efficientnet_lite0": 127,
        "resnet50": 123.675,
        "convnext_atto": 123.675,
        "deit_tiny": 123.675,
        "vit_tiny": 127.5,
    }
    for name, mean in means.items():
        assert registry.build(ModelConfig(name=name), classes=2).pixel_mean[0] == mean
    config = ModelConfig(name="vit_tiny", pixel_mean=(1.0, 2.0, 3.0), pixel_std=(4.0, 5.0, 6.0))
    network = registry.build(config, classes=2)
    found = network.normalise(jnp.asarray([[[[5, 12, 21]]]], jnp.uint8))
    np.testing.assert_allclose(found, [[[[1, 2, 3]]]])
    with pytest.raises(UserError, match=r"model\.pixel_std is \(1\.0, 0\.0, 1\.0\); it must be three numbers above 0"):
        ModelConfig(pixel_std=(1.0, 0.0, 1.0))
