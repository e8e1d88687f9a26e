"""Batch normalisation against Flax's own, and what else the layers promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.models.layers import BatchNormAct, Conv, SpatialDropout, gelu, global_avg_pool, space_to_depth
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.norm import RELU


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(1, 2, shape), jnp.float32)


@pytest.mark.parametrize(("dtype", "relative", "absolute"), [(jnp.float32, 5e-7, 5e-7), (jnp.bfloat16, 2**-8, 0)])
def test_gelu_agrees_with_jax(dtype: jnp.dtype, relative: float, absolute: float) -> None:
    x = jnp.linspace(-3, 9, 2001).astype(dtype)
    wide = x.astype(jnp.float32)
    expected, pull = jax.vjp(lambda wide: jax.nn.gelu(wide, approximate=False), wide)
    found, pull_found = jax.vjp(gelu, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=relative, atol=absolute)
    np.testing.assert_allclose(
        pull_found(jnp.ones_like(x))[0].astype(jnp.float32),
        pull(jnp.ones_like(wide))[0],
        rtol=relative,
        atol=1e-2 * relative + absolute,
    )


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (6, 2)])
@pytest.mark.parametrize("train", [True, False])
def test_norm_agrees_with_flax(shape: tuple[int, ...], train: bool) -> None:
    settings = {"use_running_average": not train, "momentum": 0.9, "epsilon": 1e-3}
    variables = {
        "params": {"scale": jnp.array([0.5, 2.0]), "bias": jnp.array([1.0, -1.0])},
        "batch_stats": {"mean": jnp.array([0.3, 0.2]), "var": jnp.array([2.0, 0.7])},
    }
    found, found_stats = BatchNormAct(**settings).apply(variables, normal(*shape), mutable=["batch_stats"])
    expected, stats = nn.BatchNorm(**settings).apply(variables, normal(*shape), mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(found_stats["batch_stats"][name], stats["batch_stats"][name], rtol=1e-5)


def test_norm_starts_from_zero_mean_and_unit_variance() -> None:
    norm = BatchNormAct(use_running_average=False, momentum=0.9, epsilon=0.0)
    variables = norm.init(jax.random.key(0), normal(4, 3))
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))
    np.testing.assert_array_equal(variables["params"]["scale"], np.ones(3))


def test_residual_is_added_before_the_activation() -> None:
    norm = BatchNormAct(
        use_running_average=True,
        momentum=0.9,
        epsilon=0.0,
        activation=RELU,
        scale_init=nn.initializers.zeros,
    )
    x, residual = normal(4, 3), jnp.full((4, 3), -2.0).at[0].set(5.0)
    variables = norm.init(jax.random.key(0), x)
    np.testing.assert_array_equal(norm.apply(variables, x, residual), np.maximum(residual, 0))


def test_norm_keeps_its_precision_in_bfloat16() -> None:
    x = normal(64, 8, 8, 2).astype(jnp.bfloat16)
    norm = BatchNormAct(use_running_average=False, momentum=0.0, epsilon=1e-5)
    y, stats = norm.apply(norm.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(stats["batch_stats"]["var"], exact.var((0, 1, 2)), rtol=1e-4)


def test_a_bias_before_a_norm_is_a_parameter_that_is_not_added() -> None:
    x, bias = normal(2, 4, 4, 3), jnp.array([5.0, -5.0])
    added, left_out = (Conv(2, (3, 3), jnp.float32, before_norm=before_norm) for before_norm in (False, True))
    params = added.init(jax.random.key(0), x)["params"] | {"bias": bias}
    assert jax.tree.map(jnp.shape, left_out.init(jax.random.key(0), x)["params"]) == jax.tree.map(jnp.shape, params)
    with_bias, without = (layer.apply({"params": params}, x) for layer in (added, left_out))
    np.testing.assert_allclose(with_bias - without, np.broadcast_to(bias, without.shape), rtol=1e-5, atol=1e-5)


def test_spatial_dropout_drops_the_same_channels_with_cpu_kernels() -> None:
    x, drop, found = normal(3, 4, 5, 16), SpatialDropout(0.5, deterministic=False), []
    for enabled in (True, False):
        with use_cpu_kernels(enabled):
            found.append(np.asarray(drop.apply({}, x, rngs={"dropout": jax.random.key(0)})))
    np.testing.assert_array_equal(*found)
    dropped = (found[0] == 0).all((1, 2))
    assert dropped.any()
    assert not dropped.all()


def test_global_avg_pool_is_the_mean_of_each_channel() -> None:
    x = normal(2, 4, 6, 3)
    np.testing.assert_allclose(global_avg_pool(x), np.asarray(x).mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_space_to_depth_keeps_each_patch_together() -> None:
    x = normal(2, 4, 6, 3)
    folded = np.asarray(space_to_depth(x, side=2))
    assert folded.shape == (2, 2, 3, 12)
    for row, column in np.ndindex(2, 3):
        patch = np.asarray(x)[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(folded[:, row, column], patch.reshape(2, 12))
    np.testing.assert_array_equal(space_to_depth(x, side=1), x)


def test_space_to_depth_fills_the_last_patches_with_zeros() -> None:
    x = normal(1, 3, 2, 1)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
    np.testing.assert_array_equal(space_to_depth(x, side=2), space_to_depth(padded, side=2))
