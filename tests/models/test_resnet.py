"""The residual family: what its settings change, its initial values, and the names of its parameters."""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from jaxcnn.config import ModelConfig
from jaxcnn.models.registry import build, count_parameters


def shapes(config: ModelConfig, classes: int = 5) -> dict[str, tuple[int, ...]]:
    model = build(config, classes=classes)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint8)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
    return {path: leaf.shape for path, leaf in flatten_dict(variables["params"], sep="/").items()}


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_parameters_by_name() -> None:
    norm = {"scale", "bias"}
    assert shapes(ModelConfig(widths=(4, 6), blocks=(0, 1))) == {
        "stage_0/conv/kernel": (3, 3, 12, 4),
        **{f"stage_0/norm/{part}": (4,) for part in norm},
        "stage_1/conv/kernel": (3, 3, 4, 6),
        **{f"stage_1/norm/{part}": (6,) for part in norm},
        "stage_1/block_0/conv_0/kernel": (3, 3, 6, 6),
        **{f"stage_1/block_0/norm_0/{part}": (6,) for part in norm},
        "stage_1/block_0/conv_1/kernel": (3, 3, 6, 6),
        **{f"stage_1/block_0/norm_1/{part}": (6,) for part in norm},
        "classifier/kernel": (6, 5),
        "classifier/bias": (5,),
    }


def test_preactivation_norms_come_before_and_once_at_the_end() -> None:
    found = shapes(ModelConfig(widths=(4, 6), blocks=(1, 1), preactivation=True))
    assert "stage_0/norm/scale" not in found
    assert found["stage_1/norm/scale"] == (4,)
    assert found["stage_1/block_0/norm_0/scale"] == (6,)
    assert found["norm/scale"] == (6,)


@pytest.mark.parametrize(("stem", "channels"), [(1, 3), (2, 12), (4, 48)])
def test_stem_folds_patches_into_channels(stem: int, channels: int) -> None:
    assert shapes(ModelConfig(widths=(4,), blocks=(1,), stem=stem))["stage_0/conv/kernel"] == (3, 3, channels, 4)


def test_default_size_is_that_of_the_measured_network() -> None:
    model = build(ModelConfig(), classes=200)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, False), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    )
    assert count_parameters(variables["params"]) == 7_930_440


@pytest.mark.parametrize("preactivation", [False, True])
def test_blocks_start_as_identities(preactivation: bool) -> None:
    """With a residual branch of zero, a network of one block computes the same as without the block."""
    images = pictures(2, 8, 8, 3)
    deep = build(ModelConfig(widths=(4,), blocks=(1,), preactivation=preactivation), classes=5)
    flat = build(ModelConfig(widths=(4,), blocks=(0,), preactivation=preactivation), classes=5)
    variables = jax.jit(deep.init, static_argnums=2)(jax.random.key(0), images, False)
    without = {
        kind: {
            stage: {name: leaf for name, leaf in layers.items() if name != "block_0"}
            for stage, layers in variables[kind].items()
        }
        for kind in ("params", "batch_stats")
    }
    expected = jax.jit(flat.apply, static_argnums=2)(without, images, False)
    found = jax.jit(deep.apply, static_argnums=2)(variables, images, False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0


def test_convolutions_start_with_the_variance_of_he() -> None:
    model = build(ModelConfig(widths=(32,), blocks=(1,)), classes=5)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), False))()["params"]
    kernel = params["stage_0"]["block_0"]["conv_0"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 32)), rtol=0.05)


def apply_constant(config: ModelConfig, images: jax.Array, train: bool, **options: typing.Any) -> np.ndarray:
    """Logits of a stage without blocks whose kernels are all ones."""
    model = build(config, classes=3)
    tree = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), tree)
    return np.asarray(model.apply(variables, images, train, mutable=["batch_stats"], **options)[0])


def test_dropout_acts_on_the_pooled_features_in_training_only() -> None:
    config = ModelConfig(widths=(64,), blocks=(0,), dropout=0.5)
    images = pictures(2, 8, 8, 3)
    first, second = (apply_constant(config, images, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2))
    assert not np.allclose(first, second)
    plain = ModelConfig(widths=(64,), blocks=(0,))
    np.testing.assert_array_equal(
        apply_constant(config, images, train=False), apply_constant(plain, images, train=False)
    )


def test_pictures_are_centred() -> None:
    """A picture of the mean colour is zero everywhere, so only the biases remain."""
    config = ModelConfig(widths=(4,), blocks=(0,))
    gray = apply_constant(config, jnp.full((1, 8, 8, 3), 118, jnp.uint8), train=False)
    # Mean 1, variance 1, scale 1, bias 1: (0 - 1) + 1 = 0 in every feature but for epsilon.
    np.testing.assert_allclose(gray, 1, atol=1e-4)
    bright = apply_constant(config, jnp.full((1, 8, 8, 3), 182, jnp.uint8), train=False)
    assert bright.min() > 10


def test_normalisation_by_hand() -> None:
    """A stage of one convolution on pictures of one colour each: momentum .9, epsilon 1e-5, ReLU."""
    model = build(ModelConfig(widths=(1,), blocks=(0,), stem=1), classes=1)
    kernel = jnp.zeros((3, 3, 3, 1)).at[1, 1, 0].set(1.0)  # Takes the red channel.
    variables = {
        "params": {
            "stage_0": {"conv": {"kernel": kernel}, "norm": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}},
            "classifier": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)},
        },
        "batch_stats": {"stage_0": {"norm": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}},
    }
    red = np.array([117.0, 118.0, 119.0])  # So close together that epsilon shows.
    images = jnp.asarray(np.broadcast_to(red[:, None, None, None], (3, 8, 8, 3)), jnp.float32)
    logits, updates = model.apply(variables, images, True, mutable=["batch_stats"])
    x = (red - 118) / 64
    expected = np.maximum((x - x.mean()) / np.sqrt(x.var() + 1e-5), 0)
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4, atol=1e-6)
    found = updates["batch_stats"]["stage_0"]["norm"]
    np.testing.assert_allclose(found["var"], [0.9 + 0.1 * x.var()], rtol=1e-6)


@pytest.mark.parametrize("preactivation", [False, True])
def test_batch_statistics_follow_the_batch(preactivation: bool) -> None:
    config = ModelConfig(widths=(4,), blocks=(0,), preactivation=preactivation)
    model, images = build(config, classes=3), pictures(4, 8, 8, 3)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, False)
    _, updates = model.apply(variables, images, True, mutable=["batch_stats"])
    before, after = (jax.tree.leaves(tree["batch_stats"]) for tree in (variables, updates))
    assert all(not np.allclose(a, b) for a, b in zip(before, after, strict=True))
    assert model.apply(variables, images, False).shape == (4, 3)


def test_pictures_are_enlarged_at_inference_only() -> None:
    images = pictures(2, 8, 8, 3)
    plain = build(ModelConfig(widths=(4,), blocks=(1,)), classes=5)
    enlarging = build(ModelConfig(widths=(4,), blocks=(1,), inference_side=10), classes=5)
    variables = jax.jit(plain.init, static_argnums=2)(jax.random.key(0), images, False)

    def logits(model: nn.Module, images: jax.Array, train: bool) -> jax.Array:
        found, _ = jax.jit(lambda images: model.apply(variables, images, train, mutable=["batch_stats"]))(images)
        assert isinstance(found, jax.Array)
        return found

    planes = np.moveaxis(np.asarray(images, np.float32), -1, 1)
    enlarged = [
        [Image.fromarray(plane).resize((10, 10), Image.Resampling.BILINEAR) for plane in picture] for picture in planes
    ]
    expected = logits(plain, jnp.asarray(np.moveaxis(np.array(enlarged), 1, -1)), False)
    np.testing.assert_allclose(logits(enlarging, images, False), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(logits(enlarging, images, True), logits(plain, images, True))
