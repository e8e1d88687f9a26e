"""Every network by name: shapes, types, precision, names, kernels and traces."""

import functools
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import ModelConfig, ModelName
from jaxcnn.models import registry
from jaxcnn.ops.dispatch import use_cpu_kernels

LARGER = (
    *("resnet50", "mobilenet_v3_large", "vit_small", "deit_tiny", "deit_small"),
    *("convnext_femto", "convnext_pico", "convnext_nano", "convnext_tiny"),
)
"""Networks that differ from a smaller one in numbers only, and take seconds to trace."""
NAMES = [name for name in typing.get_args(ModelName) if name not in LARGER]


def small(name: str, **settings: typing.Any) -> ModelConfig:
    """The settings of a network, narrow if its shape can be set."""
    return ModelConfig(name=name, **({"widths": (8, 12), "blocks": (1, 1)} if name == "resnet" else {}), **settings)


def shapes(model: typing.Any, side: int = 8) -> typing.Any:
    """Shapes of the variables; real initial values would cost seconds of compilation."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)


def random_variables(model: typing.Any) -> typing.Any:
    """Kernels that keep the standard deviation of their input; all else near one."""
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if len(shape.shape) == 1:
            return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), jnp.float32)
        return jnp.asarray(rng.normal(0, np.prod(shape.shape[:-1]) ** -0.5, shape.shape), jnp.float32)

    return jax.tree.map(leaf, shapes(model))


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def forward(model: typing.Any, variables: typing.Any, images: jax.Array) -> jax.Array:
    """Logits in training, without the updated batch statistics."""
    rngs = {"dropout": jax.random.key(0)}
    return model.apply(variables, images, True, mutable=["batch_stats"], rngs=rngs)[0]


def test_the_registry_has_the_names_of_the_settings() -> None:
    assert sorted(registry.NAMES) == sorted(typing.get_args(ModelName))


@pytest.mark.run
@pytest.mark.parametrize("name", NAMES)
def test_variables_and_logits_are_float32_at_every_size(name: str) -> None:
    model = registry.build(small(name), classes=5)
    variables = shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    for height, width in ((8, 8), (17, 30)):
        logits, updates = jax.eval_shape(
            partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}),
            variables,
            jax.ShapeDtypeStruct((2, height, width, 3), jnp.uint8),
        )
        assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
        assert updates.get("batch_stats") == variables.get("batch_stats")


@pytest.mark.run
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_precision_decides_what_every_layer_computes_in(name: str, precision: str) -> None:
    model = registry.build(small(name, precision=precision), classes=5)
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
    exact, rough = (
        registry.build(small(name, precision=precision), classes=5) for precision in ("float32", "bfloat16")
    )
    variables, images = random_variables(exact), pictures(4, 8, 8, 3)
    evaluate = jax.jit(lambda model, x: model.apply(variables, x, False), static_argnums=0)
    expected, found = evaluate(exact, images), evaluate(rough, images)
    assert not np.array_equal(expected, found)
    assert np.abs(expected - found).max() < 0.02 * np.abs(expected).max()


@pytest.mark.run
def test_equal_settings_share_one_trace() -> None:
    traces = []

    @partial(jax.jit, static_argnums=0)
    def logits(model: typing.Any, variables: typing.Any, images: jax.Array) -> jax.Array:
        traces.append(model)
        return model.apply(variables, images, False)

    for name in NAMES:
        for _ in range(2):
            model = registry.build(small(name), classes=5)
            logits.trace(model, shapes(model), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8))
    assert len(traces) == len(NAMES) - 1  # Prototype 4 is the seed network.
    assert registry.build(small("resnet"), classes=5) != registry.build(small("resnet", stem=1), classes=5)


def lowered(model: registry.Network) -> str:
    """A training step's forward pass as StableHLO."""
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}))
    return run.lower(shapes(model), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)).as_text()


@pytest.mark.parametrize("name", ["resnet", "prototype6"])
def test_a_network_is_plain_unless_it_is_built_with_kernels(name: str) -> None:
    plain, fast = (registry.build(small(name), classes=5, cpu_kernels=kernels) for kernels in (False, True))
    assert plain == registry.build(small(name, cpu_kernels=True), classes=5)
    assert plain != fast
    assert shapes(plain) == shapes(fast)
    assert "optimization_barrier" in lowered(fast)
    assert "optimization_barrier" not in lowered(plain)
    with use_cpu_kernels(True):
        assert "optimization_barrier" not in lowered(plain)


@pytest.mark.run
@pytest.mark.parametrize("name", ["resnet", "prototype6"])
def test_kernels_change_nothing_but_rounding(name: str) -> None:
    plain, fast = (registry.build(small(name), classes=5, cpu_kernels=kernels) for kernels in (False, True))
    variables, images = random_variables(plain), pictures(4, 16, 16, 3)

    @partial(jax.jit, static_argnums=0)
    def logits_and_gradients(model: registry.Network, params: typing.Any) -> typing.Any:
        def loss(params: typing.Any) -> tuple[jax.Array, jax.Array]:
            found = forward(model, variables | {"params": params}, images)
            return jnp.sin(found).sum(), found

        return jax.grad(loss, has_aux=True)(params)

    (expected_gradients, expected), (gradients, found) = (
        logits_and_gradients(model, variables["params"]) for model in (plain, fast)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        wanted = np.asarray(functools.reduce(lambda tree, key: tree[key.key], path, expected_gradients))
        np.testing.assert_allclose(gradient, wanted, atol=1e-3 * max(np.abs(wanted).max(), 1), err_msg=str(path))


@pytest.mark.parametrize(
    ("allowed", "available", "used"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_kernels_are_used_where_settings_and_machine_have_them(
    monkeypatch: pytest.MonkeyPatch, allowed: bool, available: bool, used: bool
) -> None:
    monkeypatch.setattr(registry, "cpu_kernels_available", lambda: available)
    found = registry.build_here(small("resnet", cpu_kernels=allowed), classes=5)
    assert found == registry.build(small("resnet"), classes=5, cpu_kernels=used)


def test_forward_mode_with_kernels_names_the_setting() -> None:
    network = registry.build(ModelConfig(widths=(4,), blocks=(0,)), classes=2, cpu_kernels=True)
    images = jnp.ones((1, 8, 8, 3))
    variables = registry.build(ModelConfig(widths=(4,), blocks=(0,)), classes=2).init(
        jax.random.key(0), images, train=False
    )

    def loss(images: jax.Array) -> jax.Array:
        return jnp.square(network.apply(variables, images, train=False)).sum()

    for differentiate in (lambda: jax.jvp(loss, (images,), (images,)), lambda: jax.hessian(loss)(images)):
        with pytest.raises(TypeError, match=r"no forward mode, .* with the setting model\.cpu_kernels False"):
            differentiate()


def test_count_parameters_of_arrays_and_of_shapes() -> None:
    tree = {"a": np.zeros((2, 3)), "b": {"c": jax.ShapeDtypeStruct((4,), jnp.float32), "d": jnp.zeros(())}}
    assert registry.count_parameters(tree) == 11
    assert registry.count_parameters({}) == 0
