"""Pooling against NumPy, and by CPU kernels against the plain one: values and gradients, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.pool import avg_pool, max_pool, overlapping_max_pool


def test_pools_reduce_each_patch():
    x = normal(2, 4, 6, 3)
    patches = np.asarray(x).reshape(2, 2, 2, 3, 2, 3)
    np.testing.assert_array_equal(max_pool(x), patches.max((2, 4)))
    np.testing.assert_allclose(avg_pool(x), patches.mean((2, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_pools_drop_an_odd_edge_but_never_the_last_pixel(pool):
    x = normal(2, 5, 1, 3)
    y = pool(x)
    assert y.shape == (2, 2, 1, 3)
    np.testing.assert_array_equal(y, pool(x[:, :4]))
    np.testing.assert_array_equal(pool(x[:, :1]), x[:, :1])


@pytest.mark.parametrize("pool", [max_pool, avg_pool, overlapping_max_pool])
@pytest.mark.parametrize("sides", [(4, 6), (5, 7), (1, 4), (3, 1), (1, 1), (2, 2)])
def test_values_and_gradients_of_the_cpu_kernels(pool, sides):
    x = normal(3, *sides, 5)
    results = []
    for cpu in (True, False):
        with use_cpu_kernels(cpu):
            y, back = jax.vjp(pool, x)
        results.append((y, *back(normal(*y.shape, seed=1))))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, overlapping_max_pool])
def test_the_first_of_equal_pixels_gets_the_gradient(pool):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, 6, 6, 3)), jnp.float32)
    gradients = []
    for cpu in (True, False):
        with use_cpu_kernels(cpu):
            gradients.append(jax.grad(lambda x: pool(x).sum())(x))
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("pool", [max_pool, overlapping_max_pool])
def test_the_maximum_of_bfloat16_is_exact(pool):
    x = normal(3, 6, 7, 5).astype(jnp.bfloat16)
    results = []
    for cpu in (True, False):
        with use_cpu_kernels(cpu):
            results.append(jax.vjp(pool, x)[0])
    assert results[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(*[np.asarray(result, np.float32) for result in results])


def test_the_mean_of_bfloat16_is_rounded_once():
    x = jnp.asarray([256, 1, 1, 1], jnp.bfloat16).reshape(1, 2, 2, 1)
    with use_cpu_kernels(True):
        assert avg_pool(x).item() == jnp.bfloat16(259 / 4)
