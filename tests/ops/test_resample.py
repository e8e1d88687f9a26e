"""The kernel that reads rows against the product with a matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.resample import Taps, resample

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_are_weighted_sums(kernels, dtype):
    x = RANDOM.integers(0, 256, (3, 7, 5)).astype(dtype)
    index = RANDOM.integers(0, 7, (3, 4, 3))
    # The same row twice counts twice.
    index[:, :, 2] = index[:, :, 0]
    weight = RANDOM.normal(size=(3, 4, 3)).astype(np.float32)
    with use_cpu_kernels(kernels):
        found = resample(jnp.asarray(x), Taps(jnp.asarray(index), jnp.asarray(weight)))
    expected = sum(
        weight[:, :, i, None] * np.take_along_axis(x.astype(np.float64), index[:, :, i, None], 1) for i in range(3)
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
