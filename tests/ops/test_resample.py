"""The kernel that reads rows and columns, and the products with matrices, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.resample import Taps, resample

RANDOM = np.random.default_rng(0)


def draw_taps(batch: int, *, length: int, result: int) -> tuple[np.ndarray, np.ndarray]:
    """Lines, one of them twice, and weights that add up to 1: [taps, batch, result]."""
    lines = RANDOM.integers(0, length, (3, batch, result))
    # The same line twice counts twice.
    lines[2] = lines[0]
    weight = RANDOM.uniform(0.1, 1, (3, batch, result)).astype(np.float32)
    return lines, weight / weight.sum(0)


def combine(x: np.ndarray, lines: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums of lines along the second axis."""
    return sum(weight[i, :, :, None, None] * np.take_along_axis(x, lines[i, :, :, None, None], 1) for i in range(3))


@pytest.mark.parametrize("kernels", [False, True])
def test_pixels_are_weighted_sums_of_rows_and_columns(kernels: bool) -> None:
    images = RANDOM.integers(0, 256, (3, 7, 5, 3), dtype=np.uint8)
    rows, columns = draw_taps(3, length=7, result=4), draw_taps(3, length=5, result=6)
    with use_cpu_kernels(kernels):
        found = resample(jnp.asarray(images), Taps(*map(jnp.asarray, rows)), Taps(*map(jnp.asarray, columns)))
    expected = combine(combine(images.astype(np.float64), *rows).swapaxes(1, 2), *columns).transpose(0, 3, 2, 1)
    assert found.shape == (3, 3, 4, 6)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kernels", [False, True])
def test_pixels_stay_in_the_range_of_bytes(kernels: bool) -> None:
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    images[:, :, 1] = 0
    # Weights that add up to more than 1, and to less than 0.
    above, below = ([1.0, 0.5], [0.0, -0.5])
    taps = [Taps(jnp.zeros((2, 1, 2), jnp.int32), jnp.asarray([above, below])[:, None]) for _ in range(2)]
    with use_cpu_kernels(kernels):
        found = np.asarray(resample(jnp.asarray(images), *taps))
    assert found.min() >= 0
    assert found.max() <= 255


def test_products_of_bytes_are_exact() -> None:
    """A byte times a weight with as many bits as float32 has."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    weight = np.float32(1) - np.float32(2**-24)
    rows = Taps(jnp.arange(16)[None, None], jnp.full((1, 1, 16), weight))
    columns = Taps(jnp.arange(16)[None, None], jnp.ones((1, 1, 16)))
    found = resample(jnp.asarray(images), rows, columns)
    np.testing.assert_array_equal(found[0, 0], images[0, :, :, 0].astype(np.float32) * weight)
