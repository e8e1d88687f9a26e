"""Muon against its definition and against Optax' own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.muon import RMS, orthogonalize, scale_by_muon

KERNELS = {"conv": {"kernel": (3, 3, 8, 6)}, "dense": {"kernel": (5, 12)}}


def gradients(seed: int) -> optax.Params:
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32),
        KERNELS,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


@pytest.mark.run
@settings(max_examples=25)
@given(
    rows=st.sampled_from([1, 7, 40]),
    columns=st.sampled_from([1, 6, 30]),
    decades=st.floats(0, 2),
    seed=st.integers(0, 99),
)
def test_singular_vectors_stay_and_values_come_to_one(rows: int, columns: int, decades: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rank = min(rows, columns)
    left = np.linalg.qr(generator.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(columns, rank)))[0]
    matrix = (left * np.geomspace(1, 10**-decades, rank)) @ right.T
    found = np.asarray(orthogonalize(jnp.asarray(matrix, jnp.float32))) / (RMS * np.sqrt(max(rows, columns)))
    rotated = left.T @ found @ right
    values = np.diag(rotated)
    np.testing.assert_allclose(rotated, np.diag(values), atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(values), rtol=1e-3)
    assert np.all((values > 0.3) & (values < 1.3))


def test_a_zero_gradient_gives_a_zero_update() -> None:
    found = orthogonalize(jnp.zeros((4, 3)))
    np.testing.assert_array_equal(found, 0)


def test_updates_agree_with_optax() -> None:
    rule = scale_by_muon(momentum=0.0)
    optax_rule = optax.contrib.muon(
        -1.0,
        beta=0.0,
        consistent_rms=RMS,
        muon_weight_dimension_numbers=jax.tree.map(
            lambda kernel: optax.contrib.MuonDimensionNumbers(tuple(range(kernel.ndim - 1)), kernel.ndim - 1),
            gradients(0),
        ),
    )
    found, _ = rule.update(gradients(0), rule.init(gradients(0)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, _ = optax_rule.update(gradients(0), optax_rule.init(gradients(0)), gradients(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_momentum_is_nesterovs() -> None:
    rule = scale_by_muon(momentum=0.5)
    first, second = gradients(0), gradients(1)
    _, state = rule.update(first, rule.init(first))
    found, _ = rule.update(second, state)
    looked_ahead = jax.tree.map(lambda a, b: 0.5 * (0.5 * a + b) + b, first, second)
    matrix = looked_ahead["conv"]["kernel"].reshape(-1, 6)
    np.testing.assert_allclose(found["conv"]["kernel"].reshape(-1, 6), orthogonalize(matrix), atol=1e-6)
