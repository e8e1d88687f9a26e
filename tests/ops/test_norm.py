"""Normalisation, plain and by the CPU kernel, against its definition: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.norm import IDENTITY, PIECES, RELU, Activation, batch_norm_act


def by_definition(z, scale, bias, residual=None, *, epsilon, activation):
    axes = tuple(range(z.ndim - 1))
    mean = z.mean(axes, keepdims=True)
    var = jnp.square(z - mean).mean(axes, keepdims=True)
    shape = (1,) * (z.ndim - 1) + (-1,)
    y = (z - mean) / jnp.sqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape)
    y = y if residual is None else y + residual
    y = jnp.where(y > 0, y, activation.negative_slope * y)
    y = y if activation.ceiling is None else jnp.where(y < activation.ceiling, y, activation.ceiling)
    return y, mean.reshape(-1), var.reshape(-1)


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("activation", [RELU, Activation(0.3), IDENTITY, Activation(ceiling=1.5)])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (40, 7), (5, 7, 3, 2), (PIECES, 3, 5)])
def test_values_and_gradients(shape, with_residual, activation, cpu):
    z, residual, weights = (normal(*shape, seed=seed) * 2 + 1 for seed in range(3))
    scale, bias = (normal(shape[-1], seed=seed) for seed in (3, 4))
    maps = (z, scale, bias, residual) if with_residual else (z, scale, bias)

    def run(function):
        def total(*maps):
            y, mean, var = function(*maps, epsilon=1e-3, activation=activation)
            return (y * weights).sum(), (y, mean, var)

        with use_cpu_kernels(cpu):
            return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(maps))), has_aux=True))(*maps)

    for found, expected in zip(jax.tree.leaves(run(batch_norm_act)), jax.tree.leaves(run(by_definition)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_no_gradient_flows_through_the_statistics():
    z = normal(8, 3)
    ones = jnp.ones(3)
    with use_cpu_kernels(True):
        gradient = jax.grad(lambda z: batch_norm_act(z, ones, ones, epsilon=0.1, activation=RELU).mean.sum())(z)
    np.testing.assert_array_equal(gradient, np.zeros_like(z))


@pytest.mark.parametrize("channels", [8, 64])
def test_bfloat16_is_summed_in_float32(channels):
    z = (normal(4096, channels) + 3).astype(jnp.bfloat16)
    scale, bias = jnp.ones(channels), jnp.zeros(channels)

    def gradients(z):
        def total(z, scale, bias):
            y = batch_norm_act(z, scale, bias, epsilon=1e-5, activation=RELU).y
            return (y.astype(jnp.float32) * z.astype(jnp.float32)).sum()

        with use_cpu_kernels(True):
            return jax.grad(total, argnums=(1, 2))(z, scale, bias)

    for found, expected in zip(gradients(z), gradients(z.astype(jnp.float32)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2)
    with use_cpu_kernels(True):
        mean = batch_norm_act(z, scale, bias, epsilon=1e-5, activation=RELU).mean
    np.testing.assert_allclose(mean, z.astype(jnp.float32).mean(0), rtol=1e-5)


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("ratio", [1_000, 5_000])
def test_the_variance_of_a_map_with_a_large_mean_is_kept(ratio, cpu):
    z = normal(4, 24, 24, 8) + ratio
    scale, bias = jnp.ones(8), jnp.zeros(8)
    # The second map has corners far from the mean, as maps have that were padded with zeros.
    for x in (z, z.at[:, 0, 0].add(100.0)):
        exact = np.asarray(x, np.float64)
        expected_mean, expected_std = exact.mean((0, 1, 2)), exact.std((0, 1, 2))
        with use_cpu_kernels(cpu):
            y, mean, var = batch_norm_act(x, scale, bias, epsilon=0.0, activation=IDENTITY)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-6)
        np.testing.assert_allclose(var, expected_std**2, rtol=1e-3)
        np.testing.assert_allclose(y, (exact - expected_mean) / expected_std, atol=ratio * 2e-6)


def test_what_is_near_the_mean_changes_nothing_but_rounding():
    z = normal(4, 24, 24, 8) + 1000
    scale, bias = jnp.ones(8), jnp.zeros(8)

    def results(**given):
        def total(z):
            found = batch_norm_act(z, scale, bias, epsilon=0.0, activation=RELU, **given)
            return (found.y * normal(*z.shape, seed=1)).sum(), found

        return jax.value_and_grad(total, has_aux=True)(z)

    (_, found), gradient = results(near_mean=jnp.full(8, 1001.0))
    (_, expected), expected_gradient = results()
    np.testing.assert_allclose(found.var, expected.var, rtol=1e-3)
    np.testing.assert_allclose(found.y, expected.y, atol=5e-3)
    np.testing.assert_allclose(gradient, expected_gradient, atol=5e-3)
    # Nothing is read from the map for it.
    text = str(jax.make_jaxpr(lambda z: results(near_mean=jnp.zeros(8)))(z))
    assert "slice" not in text
