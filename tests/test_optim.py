"""Schedules at their ends, and each optimizer against its rule computed by hand."""

import dataclasses
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.config import OptimConfig
from jaxcnn.optim import make_optimizer, make_schedule

HINTS = typing.get_type_hints(OptimConfig)
NAMES = typing.get_args(HINTS["name"])
SCHEDULES = typing.get_args(HINTS["schedule"])


def rates(steps: int, **settings: typing.Any) -> np.ndarray:
    schedule = make_schedule(OptimConfig(**settings), steps=steps)
    return np.array([schedule(jnp.int32(step)) for step in range(steps + 1)])


def params() -> dict:
    rng = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (3, 3, 2, 8), "bias": (8,)},
        "norm": {"scale": (8,), "bias": (8,)},
        "dense": {"kernel": (8, 4), "bias": (4,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def updates(config: OptimConfig, *gradients: dict, steps: int = 10) -> list[dict]:
    """The updates for a sequence of gradients; the parameters stay as they are."""
    optimizer = make_optimizer(config, steps=steps)
    state, found = optimizer.init(params()), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, params())
        found.append(update)
    return found


def test_linear_rises_and_falls_on_lines() -> None:
    found = rates(10, learning_rate=0.5, schedule="linear", warmup=0.4)
    np.testing.assert_allclose(
        found, np.array([0.1, 0.2, 0.3, 0.4, 0.5, 5 / 12, 4 / 12, 3 / 12, 2 / 12, 1 / 12, 0]), atol=1e-7
    )


def test_cosine_rises_on_a_line_and_falls_on_a_cosine() -> None:
    found = rates(11, learning_rate=2.0, schedule="cosine", warmup=0.27)
    np.testing.assert_allclose(found[:3], [0.5, 1, 1.5], atol=1e-6)
    np.testing.assert_allclose(found[3:], 1 + np.cos(np.pi * np.arange(9) / 8), atol=1e-6)


def test_constant_stays() -> None:
    np.testing.assert_allclose(rates(5, learning_rate=0.3, schedule="constant"), np.full(6, 0.3), rtol=1e-6)


def test_onecycle_rises_on_a_cosine_too() -> None:
    found = rates(10, learning_rate=1.0, schedule="onecycle", warmup=0.4)
    np.testing.assert_allclose(found[:5], (1 - np.cos(np.pi * np.arange(1, 6) / 5)) / 2, atol=1e-6)
    np.testing.assert_allclose(found[4:], (1 + np.cos(np.pi * np.arange(7) / 6)) / 2, atol=1e-6)


@given(st.sampled_from(SCHEDULES), st.integers(1, 40), st.floats(0, 1))
def test_rates_are_never_wasted_and_peak_once(schedule: str, steps: int, warmup: float) -> None:
    found = rates(steps, learning_rate=1.0, schedule=schedule, warmup=warmup)
    peak = min(round(warmup * steps), steps)
    assert np.all(found[:-1] > 0)
    assert np.all(np.diff(found[: peak + 1]) > 0)
    assert np.all(np.diff(found[peak:]) <= 0)
    if peak < steps:
        assert found[peak] == pytest.approx(1)
        assert found[-1] == pytest.approx(1 if schedule == "constant" else 0, abs=1e-6)


@pytest.mark.parametrize(("name", "schedule"), list(itertools.product(NAMES, SCHEDULES)))
def test_every_optimizer_and_schedule_lowers_the_loss(name: str, schedule: str) -> None:
    rate = 0.05 if name == "sgd" else 0.2
    config = OptimConfig(
        name=name, schedule=schedule, learning_rate=rate, warmup=0.2, weight_decay=1e-4, clip_norm=10.0
    )
    optimizer = make_optimizer(config, steps=30)

    def loss(values: dict) -> jax.Array:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(values))

    @jax.jit
    def run(values: dict) -> dict:
        def step(carry: tuple, _: None) -> tuple:
            values, state = carry
            update, state = optimizer.update(jax.grad(loss)(values), state, values)
            return (optax.apply_updates(values, update), state), None

        return jax.lax.scan(step, (values, optimizer.init(values)), length=30)[0][0]

    start = params()
    assert loss(run(start)) < 0.3 * loss(start)


def test_sgd_is_nesterov() -> None:
    gradient = params()
    config = OptimConfig(name="sgd", schedule="constant", learning_rate=0.1, momentum=0.9)
    first, second = updates(config, gradient, gradient)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * (g + 0.9 * g), rtol=1e-5), first, gradient)
    # Velocity after two steps: 1 + .9; Nesterov looks ahead by it once more.
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * (g + 0.9 * 1.9 * g), rtol=1e-5), second, gradient)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_by_hand(name: str) -> None:
    gradient = jax.tree.map(lambda leaf: leaf * 1e-6, params())  # So small that epsilon shows.
    config = OptimConfig(name=name, schedule="constant", learning_rate=0.1, momentum=0.8)
    first, second = updates(config, gradient, jax.tree.map(lambda leaf: 3 * leaf, gradient))
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * g / (np.abs(g) + 1e-7), rtol=1e-4), first, gradient)

    def expected(g: jax.Array) -> np.ndarray:
        g = np.asarray(g, np.float64)
        mean = (0.2 * 0.8 * g + 0.2 * 3 * g) / (1 - 0.8**2)
        square = (0.001 * 0.999 * g**2 + 0.001 * 9 * g**2) / (1 - 0.999**2)
        return -0.1 * mean / (np.sqrt(square) + 1e-7)

    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, expected(g), rtol=1e-3), second, gradient)


@pytest.mark.parametrize("name", NAMES)
def test_only_kernels_decay(name: str) -> None:
    zero = jax.tree.map(jnp.zeros_like, params())
    config = OptimConfig(name=name, schedule="constant", learning_rate=0.1, weight_decay=0.5)
    (found,) = updates(config, zero)
    for layer, part in (("conv", "bias"), ("norm", "scale"), ("norm", "bias"), ("dense", "bias")):
        np.testing.assert_array_equal(found[layer][part], zero[layer][part])
    for layer in ("conv", "dense"):
        kernel = np.asarray(params()[layer]["kernel"])
        expected = {
            "sgd": -0.1 * 1.9 * 0.5 * kernel,  # Added to the gradient, so it enters the momentum.
            "adam": -0.1 * np.sign(kernel),
            "adamw": -0.1 * 0.5 * kernel,
            "muon": -0.1 * 0.5 * kernel,
        }
        np.testing.assert_allclose(found[layer]["kernel"], expected[name], rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_together() -> None:
    gradient = params()
    norm = float(optax.tree.norm(gradient))
    plain = OptimConfig(name="sgd", schedule="constant", learning_rate=0.1, momentum=0.0)
    loose, tight = (dataclasses.replace(plain, clip_norm=limit) for limit in (norm * 2, norm / 2))
    whole, same, half = (updates(config, gradient)[0] for config in (plain, loose, tight))
    jax.tree.map(np.testing.assert_array_equal, whole, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 2, b, rtol=1e-5), whole, half)


def test_muon_makes_kernels_orthogonal() -> None:
    config = OptimConfig(name="muon", schedule="constant", learning_rate=0.1)
    (found,) = updates(config, params())
    for layer in ("conv", "dense"):
        matrix = np.asarray(found[layer]["kernel"])
        matrix = matrix.reshape(-1, matrix.shape[-1])
        values = np.linalg.svd(matrix, compute_uv=False)
        # Five Newton-Schulz steps bring the singular values to about 1 (.7 to 1.2), times the scale for AdamW's size.
        scale = 0.1 * 0.2 * np.sqrt(max(matrix.shape))
        assert np.all(values > 0.6 * scale)
        assert np.all(values < 1.3 * scale)
        gradient = np.asarray(params()[layer]["kernel"]).reshape(matrix.shape)
        assert np.sum(matrix * gradient) < 0


def test_muon_leaves_biases_and_norms_to_adam() -> None:
    gradient = jax.tree.map(lambda leaf: leaf * 1e-6, params())  # So small that epsilon shows.
    config = OptimConfig(name="muon", schedule="constant", learning_rate=0.1, momentum=0.8)
    again = jax.tree.map(lambda leaf: 3 * leaf, gradient)
    adam = dataclasses.replace(config, name="adam")
    found, expected = (updates(settings, gradient, again)[1] for settings in (config, adam))
    for layer, part in (("conv", "bias"), ("norm", "scale"), ("norm", "bias"), ("dense", "bias")):
        np.testing.assert_allclose(found[layer][part], expected[layer][part], rtol=1e-5)


def test_muon_has_the_momentum_that_is_set() -> None:
    gradient, other = params(), jax.tree.map(lambda leaf: leaf[::-1], params())
    for momentum in (0.0, 0.8):
        config = OptimConfig(name="muon", schedule="constant", learning_rate=0.1, momentum=momentum)
        seen = jax.tree.map(lambda a, b, m=momentum: m * (m * a + b) + b, gradient, other)
        found, expected = updates(config, gradient, other)[1], updates(config, seen)[0]
        for layer in ("conv", "dense"):
            np.testing.assert_allclose(found[layer]["kernel"], expected[layer]["kernel"], atol=1e-5)


def test_the_rate_follows_the_schedule() -> None:
    gradient = params()
    config = OptimConfig(name="sgd", schedule="linear", learning_rate=1.0, momentum=0.0)
    for step, update in enumerate(updates(config, *[gradient] * 4, steps=4)):
        expected = 1 - step / 4
        jax.tree.map(lambda u, g, e=expected: np.testing.assert_allclose(u, -e * g, rtol=1e-6), update, gradient)


def test_equal_settings_give_one_optimizer() -> None:
    assert make_optimizer(OptimConfig(), steps=5) is make_optimizer(OptimConfig(), steps=5)
    assert make_optimizer(OptimConfig(), steps=5) is not make_optimizer(OptimConfig(), steps=6)
