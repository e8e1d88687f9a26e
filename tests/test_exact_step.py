"""The exact results of a training step, with a network small enough to write them out."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import step
from jaxcnn.config import AugmentConfig, DistillConfig
from jaxcnn.models.network import Network
from jaxcnn.state import create_state

CLASSES = 3
KEY = jax.random.key(7)


class Linear(Network):
    """A network of one layer that sees the mean colour of a picture, less that of its group, if it has groups."""

    @nn.compact
    def __call__(self, images, train):
        colours = images.astype(jnp.float32).mean((1, 2)) / 255
        if train and self.norm_group:
            groups = colours.reshape(-1, self.norm_group, 3)
            colours = (groups - groups.mean(1, keepdims=True)).reshape(-1, 3)
        return nn.Dense(CLASSES, name="classifier")(colours)


LABELS = np.array([0, 1, 2, 2, 1, 0, 0, 0, 2, 1, 1, 2], np.int32)
RATE = 0.5


def make_images(side=8):
    images = np.random.default_rng(0).integers(0, 120, (12, side, side, 3), dtype=np.uint8)
    return images + np.uint8(60) * np.eye(3, dtype=np.uint8)[LABELS[::-1]][:, None, None]


def setup_linear(*, averaged=False, norm_group=None):
    model, optimizer = Linear(classes=CLASSES, norm_group=norm_group), optax.sgd(RATE)
    state = create_state(jax.random.key(0), model=model, optimizer=optimizer, image_size=8, averaged=averaged)
    take = partial(
        step.train_step,
        model=model,
        optimizer=optimizer,
        augment_config=AugmentConfig(),
        classes=CLASSES,
        resolution=8,
        label_smoothing=0.0,
        average_decay=0.9,
    )
    images = make_images()
    return (
        model,
        state,
        lambda given=images, labels=LABELS, taught=None, **how: take(
            jax.tree.map(jnp.copy, state), given, labels, KEY, taught, **how
        ),
    )


def assert_close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize(("smoothing", "weight"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.25), (0.3, 0.25)])
def test_a_step_is_that_of_the_written_out_loss(smoothing, weight):
    model, state, take = setup_linear()
    images = make_images()
    taught = jax.nn.softmax(jax.random.normal(KEY, (12, CLASSES)))
    targets = (1 - smoothing) * jax.nn.one_hot(LABELS, CLASSES) + smoothing / CLASSES

    def loss(params):
        logits = model.apply({"params": params}, images, train=True)
        by_labels = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
        by_teachers = -(taught * jax.nn.log_softmax(logits / 2.0)).sum(-1).mean()
        return (1 - weight) * by_labels + weight * 2.0**2 * by_teachers, logits

    params = state.variables["params"]
    (expected, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    teachers = {"taught": taught, "distill_config": DistillConfig(weight=weight, temperature=2.0)} if weight else {}
    after, metrics = take(label_smoothing=smoothing, **teachers)
    assert_close(after.variables["params"], jax.tree.map(lambda a, gradient: a - RATE * gradient, params, gradients))
    assert_close(metrics.loss, 12 * expected)
    assert (float(metrics.pictures), int(after.step), after.variables["batch_stats"]) == (12, 1, {})
    correct = int((np.asarray(logits).argmax(-1) == LABELS).sum())
    assert 0 < correct < 12
    assert float(metrics.correct) == correct


@pytest.mark.parametrize("norm_group", [None, 2])
def test_a_batch_may_be_computed_in_parts_and_again(norm_group):
    _, _, take = setup_linear(norm_group=norm_group)
    taught = jax.nn.softmax(jax.random.normal(KEY, (12, CLASSES)))
    whole = take(taught=taught)
    for how in ({"accumulate": 2}, {"accumulate": 3}, {"remat": True}):
        assert_close(take(taught=taught, **how), whole)


def test_the_parts_of_a_batch_have_whole_groups_from_all_over_it():
    numbers = jnp.arange(12.0)
    assert step._split(numbers, 3, group=2).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert step._split(numbers, 3, group=None).tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    pictures = jnp.arange(12 * 4.0).reshape(12, 2, 2)
    assert step._split(pictures, 2, group=3)[1].tolist() == pictures[jnp.array([3, 4, 5, 9, 10, 11])].tolist()


def test_only_products_are_kept_for_the_backward_pass():
    names = ("conv_general_dilated", "dot_general", "add", "exp")
    kept = [name for name in names if step._is_product(SimpleNamespace(name=name), 1, window=2)]
    assert kept == ["conv_general_dilated", "dot_general"]


def test_all_but_products_are_computed_again_in_the_backward_pass():
    model, state, _ = setup_linear()
    examples = step._Examples(make_images().astype(np.float32), jax.nn.one_hot(LABELS, CLASSES), None)

    def count(remat):
        loss = partial(step._compute_loss, model=model, distill_config=DistillConfig())
        compute = partial(step._compute_gradients, compute_loss=loss, label_smoothing=0.0, remat=remat)
        text = str(jax.make_jaxpr(compute)(state.variables, examples, KEY))
        return text.count(" dot_general["), text.count(" exp ")

    products, exponentials = count(False)
    assert count(True) == (products, 2 * exponentials)


def test_training_without_moves_sees_what_evaluation_sees():
    _, _, take = setup_linear()
    images = make_images(12)
    assert_close(take(images, shown=8), take(images[:, 2:10, 2:10]))


def test_the_keys_of_a_step_are_a_function_of_the_runs_key_and_its_number():
    keys = [key for number in (0, 1) for key in step.step_keys(KEY, jnp.int32(number))]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == 4
    again = step.step_keys(KEY, jnp.int32(1))
    assert [jax.random.key_data(key).tolist() for key in again] == [
        jax.random.key_data(key).tolist() for key in keys[2:]
    ]


def test_the_average_moves_faster_at_first():
    variables, average = {"a": jnp.float32(8.0)}, {"a": jnp.float32(0.0)}
    for number, decay, moved in ((0, 0.9, 0.9), (0, 0.05, 0.95), (10, 0.9, 0.45), (10**6, 0.9, 0.1)):
        after = step._update_average(average, variables, step=jnp.int32(number), decay=decay)
        np.testing.assert_allclose(after["a"], 8 * moved, rtol=1e-5)
    assert step._update_average(None, variables, step=jnp.int32(0), decay=0.9) is None


def test_features_are_what_the_head_sees():
    model, state, _ = setup_linear()
    images = make_images()
    assert_close(step.feature_step(state.variables, images, model=model), images.mean((1, 2)) / np.float32(255))
    logits = step.eval_step(state.variables, images, model=model)
    assert_close(logits, model.apply(state.variables, images, train=False))
