"""The state before the first step, whole or completed."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxcnn.config import ModelConfig, OptimConfig
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.state import complete, create_state, describe_variables, init_variables, zero_state

SIDE = 8
KEY = jax.random.key(3)
MODEL = registry.build(ModelConfig(widths=(4,), blocks=(1,)), classes=3)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_missing_is_initialised_as_in_a_whole_network():
    whole = init_variables(KEY, model=MODEL, image_size=SIDE)
    given = jax.tree.map(lambda leaf: np.full_like(leaf, 7), whole)
    head = describe_variables(MODEL, SIDE)["params"]["classifier"]
    mixed = {**given, "params": {**given["params"], "classifier": head}}
    completed = complete(mixed, KEY, model=MODEL, image_size=SIDE)
    assert_same(completed["params"]["classifier"], whole["params"]["classifier"])
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
