"""Pooling by CPU kernels against the plain layers, values and gradients, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxcnn.models.layers import avg_pool, max_pool


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize("sides", [(4, 6), (5, 7), (1, 4), (3, 1), (1, 1), (2, 2)])
def test_values_and_gradients(pool, sides):
    x = normal(3, *sides, 5)
    results = []
    for cpu in (True, False):
        y, back = jax.vjp(lambda x, cpu=cpu: pool(x, cpu=cpu), x)
        results.append((y, *back(normal(*y.shape, seed=1))))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_first_of_equal_pixels_gets_the_gradient():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, 6, 6, 3)), jnp.float32)
    found, expected = (jax.grad(lambda x, cpu=cpu: max_pool(x, cpu=cpu).sum())(x) for cpu in (True, False))
    np.testing.assert_array_equal(found, expected)


def test_the_mean_of_bfloat16_is_rounded_once():
    x = jnp.asarray([256, 1, 1, 1], jnp.bfloat16).reshape(1, 2, 2, 1)
    assert avg_pool(x, cpu=True).item() == jnp.bfloat16(259 / 4)
