"""The training step and the evaluation step: pure functions, traced once, with donated state and correct results."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import step
from jaxcnn.config import AugmentConfig, ModelConfig, OptimConfig
from jaxcnn.divergence import first_not_finite
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.state import create_state

CLASSES = 3


def setup(*, averaged=False, optim=None, size=8, model_config=None):
    model = registry.build(model_config or ModelConfig(widths=(4,), blocks=(1,)), classes=CLASSES)
    optimizer = make_optimizer(optim or OptimConfig(learning_rate=0.05, schedule="constant"), steps=100)
    state = create_state(jax.random.key(0), model=model, optimizer=optimizer, image_size=size, averaged=averaged)
    take = partial(
        step.train_step,
        model=model,
        optimizer=optimizer,
        augment_config=AugmentConfig(),
        classes=CLASSES,
        resolution=size,
        label_smoothing=0.0,
        average_decay=0.9,
    )
    return model, state, take


def make_batch(size=8, count=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % CLASSES
    images = rng.integers(0, 60, (count, size, size, 3), dtype=np.uint8) + np.uint8(90) * labels[
        :, None, None, None
    ].astype(np.uint8)
    return images, labels


KEY = jax.random.key(7)


def test_steps_learn_an_easy_problem():
    _, state, take = setup()
    images, labels = make_batch()
    losses = []
    for _ in range(30):
        state, metrics = take(state, images, labels, KEY)
        losses.append(float(metrics.loss) / float(metrics.pictures))
    assert float(metrics.pictures) == 12
    assert float(metrics.correct) == 12
    assert losses[-1] < 0.2 * losses[0]
    assert int(state.step) == 30


def test_the_first_loss_is_the_cross_entropy_of_the_model():
    model, state, take = setup()
    images, labels = make_batch()
    logits, updates = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(state.variables, images)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
    before = jax.tree.map(np.asarray, state.variables["params"])
    state, metrics = take(state, images, labels, KEY)
    np.testing.assert_allclose(float(metrics.loss), float(expected.sum()), rtol=1e-5)
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, state.variables["batch_stats"], updates["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.variables["params"], before)
    assert all(jax.tree.leaves(moved["head" if "head" in moved else next(iter(moved))]))


def test_label_smoothing_raises_the_loss_of_a_confident_model():
    _, state, take = setup()
    images, labels = make_batch()
    for _ in range(40):
        state, _ = take(state, images, labels, KEY)
    _, plain = take(jax.tree.map(jnp.copy, state), images, labels, KEY)
    _, smooth = take(state, images, labels, KEY, label_smoothing=0.3)
    assert float(smooth.loss) > float(plain.loss) + 0.5


def test_a_step_is_a_pure_function_of_state_batch_and_key():
    _, state, take = setup(optim=OptimConfig(weight_decay=0.1, momentum=0.5))
    images, labels = make_batch(seed=3)
    take = partial(take, augment_config=AugmentConfig(flip=True, pad_crop=0.2, mixup=1.0))
    first, _ = take(jax.tree.map(jnp.copy, state), images, labels, KEY)
    again, _ = take(jax.tree.map(jnp.copy, state), images, labels, KEY)
    other, _ = take(state, images, labels, jax.random.key(8))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    differ = jax.tree.map(lambda a, b: bool((a != b).any()), first.variables, other.variables)
    assert any(jax.tree.leaves(differ))


@pytest.mark.parametrize(("mixup", "dropout"), [(1.0, 0.0), (0.0, 0.5)])
def test_each_step_draws_its_own_random_numbers(mixup, dropout):
    _, state, take = setup(model_config=ModelConfig(widths=(4,), blocks=(1,), dropout=dropout))
    take = partial(take, augment_config=AugmentConfig(mixup=mixup))
    first, again, later = (
        float(take(jax.tree.map(jnp.copy, state._replace(step=jnp.int32(number))), *make_batch(), KEY)[1].loss)
        for number in (0, 0, 1)
    )
    assert first == again != later


def test_the_state_is_donated():
    _, state, take = setup()
    kernel = jax.tree.leaves(state.variables)[0]
    take(state, *make_batch(), KEY)
    assert kernel.is_deleted()


def test_one_trace_for_each_resolution():
    _, state, take = setup(size=10)  # No other test uses this size, so the cache has no entry for it.
    before = step.train_step.jitted()._cache_size()
    for seed, resolution in enumerate((8, 10, 8, 10, 8)):
        state, _ = take(state, *make_batch(size=10, seed=seed), KEY, resolution=resolution)
    assert step.train_step.jitted()._cache_size() - before == 2


def test_the_average_follows_the_variables():
    _, state, take = setup(averaged=True)
    decay = 0.9
    expected = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.average)
    for number in range(25):
        state, _ = take(state, *make_batch(seed=number), KEY)
        kept = min(decay, (1 + number) / (10 + number))
        expected = jax.tree.map(
            lambda a, v, kept=kept: kept * a + (1 - kept) * np.asarray(v), expected, state.variables
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.average, expected)
    assert state.evaluated is state.average


def test_without_an_average_the_variables_are_evaluated():
    _, state, _ = setup()
    assert state.average is None
    assert state.evaluated is state.variables


def test_a_loss_that_is_not_finite_changes_nothing_and_is_located():
    model, state, take = setup()
    state, _ = take(state, *make_batch(), KEY)
    before = jax.tree.map(np.asarray, state)
    broken = partial(take, label_smoothing=float("nan"))
    for _ in range(2):
        state, _ = broken(state, *make_batch(), KEY)
    assert not bool(state.finite)
    jax.tree.map(np.testing.assert_array_equal, state._replace(finite=before.finite), before)
    state, _ = take(state, *make_batch(), KEY)  # A good step after it changes nothing either.
    assert int(state.step) == 1
    inputs = jnp.asarray(make_batch()[0]).astype(jnp.float32)
    assert first_not_finite(state.variables, inputs, KEY, model=model) == "the loss or the norm of its gradient"
    overflow = inputs.at[0, 0, 0, 0].set(jnp.inf)
    assert first_not_finite(state.variables, overflow, KEY, model=model).startswith("the output of ")
    params = state.variables["params"]
    path, leaf = jax.tree_util.tree_leaves_with_path(params)[1]
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    poisoned = jax.tree_util.tree_map_with_path(
        lambda other, value: value.at[...].set(jnp.nan) if other == path else value, params
    )
    assert leaf.size
    variables = {**state.variables, "params": poisoned}
    assert first_not_finite(variables, inputs, KEY, model=model) == f"params/{name}"


class Bias(nn.Module):
    """A network of one parameter, which starts at zero, without batch statistics."""

    logits: Callable

    @nn.compact
    def __call__(self, images, train):
        bias = self.param("bias", nn.initializers.zeros, (CLASSES,))
        return jnp.broadcast_to(self.logits(bias), (len(images), CLASSES))


@pytest.mark.parametrize(
    ("logits", "is_finite"),
    [
        (lambda bias: bias, True),
        (lambda bias: bias + jnp.array([2e38, -2e38, 0.0]), False),  # The loss, not its gradient.
        (jnp.sqrt, False),  # The gradient, not the loss.
    ],
)
def test_neither_the_loss_nor_its_gradient_may_be_infinite(logits, is_finite):
    optimizer = make_optimizer(OptimConfig(learning_rate=0.05, schedule="constant"), steps=100)
    model = Bias(logits)
    state = create_state(jax.random.key(0), model=model, optimizer=optimizer, image_size=8, averaged=False)
    _, _, take = setup()
    state, _ = take(state, *make_batch(), KEY, model=model, optimizer=optimizer)
    assert (bool(state.finite), int(state.step)) == (is_finite, int(is_finite))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluation_uses_running_statistics_and_no_dropout(precision):
    config = ModelConfig(widths=(4,), blocks=(1,), dropout=0.5, precision=precision)
    model, state, take = setup(model_config=config)
    images, labels = make_batch()
    for _ in range(3):
        state, _ = take(state, images, labels, KEY)
    logits = step.eval_step(state.variables, images, model=model)
    assert logits.dtype == jnp.float32
    one_by_one = jnp.concatenate([step.eval_step(state.variables, images[i : i + 1], model=model) for i in range(3)])
    np.testing.assert_allclose(logits[:3], one_by_one, rtol=2e-2 if precision == "bfloat16" else 1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "precision"), [("cpu", None), ("tpu", "highest")])
def test_accelerators_multiply_in_float32_in_an_exact_evaluation(backend, precision, monkeypatch):
    seen = []

    def evaluate(variables, images, *, model, mesh):
        seen.append(jax.config.jax_default_matmul_precision)
        return jnp.zeros((len(images), CLASSES))

    monkeypatch.setattr(step, "eval_step", evaluate)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    step.exact_eval_step({}, make_batch()[0], model=Bias(jnp.sqrt))
    assert seen == [precision]
