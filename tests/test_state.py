"""The state before the first step, whole or completed."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.config import ModelConfig, OptimConfig
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.state import complete, create_state, describe_variables, init_variables, start_from, zero_state

SIDE = 8
KEY = jax.random.key(3)
MODEL = registry.build(ModelConfig(widths=(4,), blocks=(1,)), classes=3)


class Linear(nn.Module):
    """A network without batch normalisation, which drops features in training."""

    @nn.compact
    def __call__(self, images, train):
        assert (images.dtype, images.shape[1:]) == (jnp.uint8, (SIDE, SIDE, 3))
        features = nn.Dense(2)(images.astype(jnp.float32).mean((1, 2)))
        return nn.Dropout(0.5)(features, deterministic=not train)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b):
    """What is compiled as a whole may differ in the last bit from the same, operation by operation."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), a, b)


def test_what_is_missing_is_initialised_as_in_a_whole_network():
    whole = init_variables(KEY, model=MODEL, image_size=SIDE)
    given = jax.tree.map(lambda leaf: np.full_like(leaf, 7), whole)
    head = describe_variables(MODEL, SIDE)["params"]["classifier"]
    mixed = {**given, "params": {**given["params"], "classifier": head}}
    completed = complete(mixed, KEY, model=MODEL, image_size=SIDE)
    assert_close(completed["params"]["classifier"], whole["params"]["classifier"])
    given["params"]["classifier"] = completed["params"]["classifier"]
    assert_same(completed, given)


def test_a_whole_tree_is_copied_without_a_network():
    given = {"params": {"kernel": np.ones(3, np.float32)}, "batch_stats": {}}
    completed = complete(given, KEY, model=nn.Module(), image_size=SIDE)
    given["params"]["kernel"][:] = 2
    assert isinstance(completed["params"]["kernel"], jax.Array)
    assert_same(completed, {"params": {"kernel": np.ones(3, np.float32)}, "batch_stats": {}})


@pytest.mark.parametrize("name", ["sgd", "adam", "muon"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_state_of_zeros_has_the_shapes_of_a_first_state(name, averaged):
    optimizer = make_optimizer(OptimConfig(name=name), steps=10)
    state = create_state(KEY, model=MODEL, optimizer=optimizer, image_size=SIDE, averaged=averaged)
    zeros = zero_state(MODEL, optimizer=optimizer, image_size=SIDE, averaged=averaged)
    assert jax.tree.structure(zeros) == jax.tree.structure(state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), zeros) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


def make_linear_state(*, averaged: bool):
    return create_state(KEY, model=Linear(), optimizer=optax.adam(0.1), image_size=SIDE, averaged=averaged)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_first_state(averaged):
    state = make_linear_state(averaged=averaged)
    variables = init_variables(KEY, model=Linear(), image_size=SIDE)
    assert_close(state.variables, variables)
    assert variables["batch_stats"] == {}
    assert jax.tree.map(jnp.shape, variables["params"]) == {"Dense_0": {"bias": (2,), "kernel": (3, 2)}}
    assert (state.step.dtype, int(state.step), state.finite.dtype, bool(state.finite)) == (jnp.int32, 0, bool, True)
    assert_same(state.opt_state, optax.adam(0.1).init(variables["params"]))
    if averaged:
        assert_same(state.average, state.variables)
        assert_shares_nothing(state)
    else:
        assert state.average is None


def assert_shares_nothing(state):
    leaves = jax.tree.leaves((state.variables, state.average))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_the_average_is_evaluated_if_there_is_one():
    state = make_linear_state(averaged=True)
    assert state.evaluated is state.average
    state = state._replace(average=None)
    assert state.evaluated is state.variables


@pytest.mark.parametrize("averaged", [False, True])
def test_a_state_that_starts_from_other_variables_has_copies_of_them(averaged):
    state = make_linear_state(averaged=averaged)
    given = jax.tree.map(lambda leaf: np.full_like(leaf, 7), state.variables)
    started = start_from(state, given)
    assert_same(started.variables, given)
    assert_same(started.opt_state, state.opt_state)
    if averaged:
        assert_same(started.average, given)
        assert_shares_nothing(started)
    else:
        assert started.average is None
    for leaf in jax.tree.leaves(given):
        leaf[:] = 8
    assert float(jax.tree.leaves(started.variables)[0].max()) == 7
