"""The sum with a bias, plain and by the CPU kernel, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxcnn.ops.bias import add_bias
from jaxcnn.ops.dispatch import use_cpu_kernels


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (6, 2)])
def test_value_and_gradients(shape, cpu):
    x = normal(*shape)
    bias = jnp.array([0.5, -2.0])
    with use_cpu_kernels(cpu):
        y, back = jax.vjp(add_bias, x, bias)
    np.testing.assert_allclose(y, np.asarray(x) + np.asarray(bias), rtol=1e-6)
    dy = normal(*shape, seed=1)
    dx, dbias = back(dy)
    np.testing.assert_array_equal(dx, dy)
    np.testing.assert_allclose(dbias, np.asarray(dy).reshape(-1, 2).sum(0), rtol=1e-5)


def test_bfloat16_is_summed_in_float32():
    x = jnp.ones((4096, 3), jnp.bfloat16)
    with use_cpu_kernels(True):
        gradient = jax.grad(lambda bias: add_bias(x, bias).astype(jnp.float32).sum())(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, np.full(3, 4096, np.float32))
