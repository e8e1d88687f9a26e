"""The convolution by CPU kernels against `lax`'s own: values and both gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxcnn.config import ModelConfig
from jaxcnn.models.registry import NAMES, build
from jaxcnn.ops import dense_conv
from jaxcnn.ops.compiler import compiler_options, has_onednn
from jaxcnn.ops.conv import conv
from jaxcnn.ops.depthwise_conv import PIECES
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.presets import PRESETS


def with_gradients(x, kernel, *, cpu, **options):
    """The result, and the gradients of its dot product with fixed random numbers."""

    def run(x, kernel, dy):
        with use_cpu_kernels(cpu):
            y, back = jax.vjp(lambda x, kernel: conv(x, kernel, **options), x, kernel)
        return (y, *back(dy))

    shape = jax.eval_shape(lambda x, kernel: conv(x, kernel, **options), x, kernel).shape
    dy = normal(*shape, seed=2).astype(jnp.bfloat16)  # The same in both types.
    return jax.jit(run, compiler_options=compiler_options() if cpu else {})(x, kernel, dy.astype(x.dtype))


def random_arrays(shape, kernel_shape, dtype=jnp.float32):
    return normal(*shape).astype(dtype), normal(*kernel_shape, seed=1)


def assert_close(found, expected, *, tolerance):
    for name, a, b in zip(("value", "input gradient", "kernel gradient"), found, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=1e-30), name


sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
paddings = st.one_of(
    st.sampled_from(["SAME", "VALID"]), st.tuples(*(st.tuples(st.integers(0, 4), st.integers(0, 4)),) * 2)
)


@pytest.mark.run
@settings(max_examples=25)
@given(
    batch=st.integers(1, 5),
    map_sides=sides,
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=paddings,
    groups=st.sampled_from([1, 1, 1, 2, 3]),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    lines_from=st.sampled_from([1, dense_conv.LINES_FROM]),
)
def test_any_window(batch, map_sides, taps, strides, dilation, padding, groups, channels, lines_from):
    options = {"strides": strides, "dilation": dilation, "padding": padding, "groups": groups}
    x, kernel = random_arrays((batch, *map_sides, groups * channels[0]), (*taps, channels[0], groups * channels[1]))
    if padding != "SAME":
        edges = ((0, 0), (0, 0)) if padding == "VALID" else padding
        reach = [(size - 1) * spacing + 1 for size, spacing in zip(taps, dilation, strict=True)]
        assume(all(side + sum(edge) >= need for side, edge, need in zip(map_sides, edges, reach, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_conv, "LINES_FROM", lines_from)
        found = with_gradients(x, kernel, cpu=True, **options)
    assert_close(found, with_gradients(x, kernel, cpu=False, **options), tolerance=2e-5)


def zoo_shapes(configs):
    """Every convolution of some networks in training, as shapes of a map and a kernel."""
    keys = dict.fromkeys(("params", "dropout"), jax.random.key(0))
    found = set()
    for config, side in configs:
        model = build(config, classes=5)
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        run = jax.make_jaxpr(lambda images, model=model: model.init_with_output(keys, images, train=True))
        for equation in walk(run(images).jaxpr):
            if equation.primitive.name == "conv_general_dilated":
                x, kernel = (variable.aval.shape for variable in equation.invars)
                found.add((x[1:], kernel))
    return sorted(found)


def walk(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


def assert_shapes_agree(shapes, dtype):
    for map_shape, kernel_shape in shapes:
        x, kernel = random_arrays((2, *map_shape), kernel_shape, jnp.dtype(dtype))
        found = with_gradients(x, kernel, cpu=True)
        expected = with_gradients(x.astype(jnp.float32), kernel.astype(dtype).astype(jnp.float32), cpu=False)
        assert_close(found, expected, tolerance=2e-5 if dtype == "float32" else 2e-2)


@pytest.mark.run
def test_the_shapes_of_the_shipped_networks():
    shapes = zoo_shapes([(PRESETS[name]().model, 48) for name in ("tiny_imagenet", "tiny_imagenet_seed")])
    assert len(shapes) > 12
    assert_shapes_agree(shapes, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_shape_of_the_zoo(dtype):
    presets = [preset() for preset in PRESETS.values()]
    sides = [{config.data.image_size, *(side for _, side in config.resolutions)} for config in presets]
    configs = [(config.model, side) for config, own in zip(presets, sides, strict=True) for side in own]
    shapes = zoo_shapes([*configs, *((ModelConfig(name=name), 64) for name in NAMES)])
    assert len(shapes) > 40
    assert_shapes_agree(shapes, dtype)


def test_the_kernel_gradient_is_summed_in_float32():
    x, kernel = random_arrays((64, 16, 16, 4), (3, 3, 4, 4), jnp.bfloat16)
    *_, found = with_gradients(x, kernel, cpu=True)
    *_, expected = with_gradients(x.astype(jnp.float32), kernel, cpu=False)
    assert found.dtype == jnp.float32
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier):
    x, kernel = random_arrays((2, 7, 6, 4), (3, 2, 1, 4 * multiplier))
    for strides, padding in itertools.product([(1, 1), (2, 3)], ["SAME", "VALID"]):
        options = {"strides": strides, "padding": padding, "groups": 4}
        found, expected = (with_gradients(x, kernel, cpu=cpu, **options) for cpu in (True, False))
        assert_close(found, expected, tolerance=2e-5)


@pytest.mark.parametrize(("side", "batch", "channels"), [(7, 8, 12), (6, 1, 5), (5, PIECES + 1, 3)])
@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_depthwise_as_in_networks_for_photographs(side, batch, channels, taps, stride, dtype):
    options = {"strides": (stride, stride), "groups": channels}
    x, kernel = random_arrays((batch, side, side, channels), (taps, taps, 1, channels), jnp.dtype(dtype))
    kernel = kernel.astype(dtype).astype(jnp.float32)
    found = with_gradients(x, kernel, cpu=True, **options)
    expected = with_gradients(x.astype(jnp.float32), kernel, cpu=False, **options)
    assert_close(found, expected, tolerance=2e-5 if dtype == "float32" else 1e-2)


@pytest.mark.skipif(not has_onednn("float32"), reason="XLA has no oneDNN on this machine")
@pytest.mark.parametrize(
    ("options", "convolutions"),
    # The gradient of the input takes one for each of the four phases of a stride of 2.
    [({}, 3), ({"strides": (2, 2)}, 6), ({"dilation": (2, 2)}, 3), ({"padding": "VALID"}, 3)],
)
def test_value_and_gradients_are_all_computed_by_onednn(options, convolutions):
    x, kernel = random_arrays((8, 16, 16, 16), (3, 3, 16, 32))

    def gradients(x, kernel):
        with use_cpu_kernels(True):
            y, back = jax.vjp(lambda x, kernel: conv(x, kernel, **options), x, kernel)
        return (y, *back(y))

    text = jax.jit(gradients, compiler_options=compiler_options()).lower(x, kernel).compile().as_text()
    assert text.count('custom_call_target="__onednn$convolution"') == convolutions
    assert " convolution(" not in text


@pytest.mark.skipif(not has_onednn("float32"), reason="XLA has no oneDNN on this machine")
@pytest.mark.parametrize(("stride", "calls"), [(1, 2), (2, 1)])
def test_depthwise_values_and_gradients_of_maps_are_computed_by_onednn(stride, calls):
    x, kernel = random_arrays((8, 16, 16, 16), (5, 5, 1, 16))

    def gradient(x, kernel):
        with use_cpu_kernels(True):
            y, back = jax.vjp(lambda x: conv(x, kernel, strides=(stride, stride), groups=16), x)
        return y, back(y)

    text = jax.jit(gradient, compiler_options=compiler_options()).lower(x, kernel).compile().as_text()
    # The gradient of a strided map is a sum for each phase of the strides.
    assert text.count('custom_call_target="__onednn$convolution"') == calls
    assert " convolution(" not in text
