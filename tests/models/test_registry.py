"""Every network by name: shapes, types, precision, names, and traces."""

import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.config import ModelConfig, ModelName

NAMES = typing.get_args(ModelName)


def small(name: str, **settings: typing.Any) -> ModelConfig:
    """The settings of a network, narrow where its shape can be chosen."""
    return ModelConfig(name=name, **({"widths": (8, 12), "blocks": (1, 1)} if name == "resnet" else {}), **settings)


def shapes(model: typing.Any, side: int = 8) -> typing.Any:
    """Shapes of the variables; real initial values would cost seconds of compilation."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)


def random_variables(model: typing.Any) -> typing.Any:
    """Kernels that keep the size of what they multiply; all else near one."""
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if len(shape.shape) == 1:
            return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), jnp.float32)
        return jnp.asarray(rng.normal(0, np.prod(shape.shape[:-1]) ** -0.5, shape.shape), jnp.float32)

    return jax.tree.map(leaf, shapes(model))


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def forward(model: typing.Any, variables: typing.Any, images: jax.Array) -> jax.Array:
    """Logits normalised by the batch, as in training, with everything kept."""
    rngs = {"dropout": jax.random.key(0)}
    return model.apply(variables, images, True, mutable=["batch_stats"], rngs=rngs)[0]


def test_names_are_those_of_the_settings() -> None:
    assert sorted(models.NAMES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_variables_and_logits_are_float32_at_every_size(name: str) -> None:
    model = models.build(small(name), classes=5)
    variables = shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    for height, width in ((8, 8), (17, 30)):
        logits, updates = jax.eval_shape(
            partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}),
            variables,
            jax.ShapeDtypeStruct((2, height, width, 3), jnp.uint8),
        )
        assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
        assert updates["batch_stats"] == variables["batch_stats"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_precision_decides_what_every_layer_computes_in(name: str, precision: str) -> None:
    model = models.build(small(name, precision=precision), classes=5)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
    closed = jax.make_jaxpr(partial(model.apply, train=False))(shapes(model), images)
    inputs = {
        kind: [eqn.invars[0].aval.dtype for eqn in closed.jaxpr.eqns if eqn.primitive.name == kind]
        for kind in ("conv_general_dilated", "dot_general")
    }
    assert set(inputs["conv_general_dilated"]) == {jnp.dtype(precision)}
    assert set(inputs["dot_general"][:-1]) <= {jnp.dtype(precision)}
    assert inputs["dot_general"][-1] == jnp.float32
    assert closed.out_avals[0].dtype == jnp.float32


@pytest.mark.parametrize("name", ["resnet", "seed"])
def test_bfloat16_is_close_to_float32(name: str) -> None:
    exact, rough = (models.build(small(name, precision=each), classes=5) for each in ("float32", "bfloat16"))
    variables, images = random_variables(exact), pictures(4, 8, 8, 3)
    evaluate = jax.jit(lambda model, x: model.apply(variables, x, False), static_argnums=0)
    expected, found = evaluate(exact, images), evaluate(rough, images)
    assert not np.array_equal(expected, found)
    assert np.abs(expected - found).max() < 0.02 * np.abs(expected).max()


def test_equal_settings_share_one_trace() -> None:
    traces = []

    @partial(jax.jit, static_argnums=0)
    def logits(model: typing.Any, variables: typing.Any, images: jax.Array) -> jax.Array:
        traces.append(model)
        return model.apply(variables, images, False)

    for name in NAMES:
        for _ in range(2):
            model = models.build(small(name), classes=5)
            logits.trace(model, shapes(model), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8))
    assert len(traces) == len(NAMES) - 1  # prototype 4 is the seed network
    assert models.build(small("resnet"), classes=5) != models.build(small("resnet", stem=1), classes=5)


def test_count_parameters_of_arrays_and_of_shapes() -> None:
    tree = {"a": np.zeros((2, 3)), "b": {"c": jax.ShapeDtypeStruct((4,), jnp.float32), "d": jnp.zeros(())}}
    assert models.count_parameters(tree) == 11
    assert models.count_parameters({}) == 0
