"""The convolution with fewer products against the dense one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.ops import winograd_conv as module
from jaxcnn.ops.compiler import compiler_options, has_onednn
from jaxcnn.ops.conv import conv
from jaxcnn.ops.dense_conv import dense_conv
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.window import Window
from jaxcnn.ops.winograd_conv import has_fewer_products, winograd_conv

FEWEST_PRODUCTS = {  # By height of the map.
    "bfloat16": {3: 5, 4: 6, 6: 10, 7: 12, 8: 12, 9: 15, 14: 24, 16: 24, 32: 48, 56: 84},
    "float32": {3: 5, 4: 6, 5: 7, 6: 8, 7: 12, 8: 12, 9: 14, 10: 14, 12: 16, 14: 21, 16: 24, 20: 28, 32: 48, 40: 56},
}
ONE_AROUND = Window((1, 1), ((1, 1), (1, 1)), (1, 1))


def with_gradients(convolve, x, kernel, window, dtype="float32"):
    """The result, and the gradients of its dot product with fixed random numbers."""

    convolve = partial(convolve, window=window)
    x = x.astype(dtype)

    def run(x, kernel, dy):
        y, back = jax.vjp(convolve, x, kernel)
        return (y, *back(dy))

    dy = normal(*jax.eval_shape(convolve, x, kernel).shape, seed=2).astype(dtype)
    return jax.jit(run, compiler_options=compiler_options())(x, kernel, dy)


def random_arrays(shape, kernel_shape):
    return normal(*shape).astype(jnp.bfloat16), normal(*kernel_shape, seed=1)


def errors(found, expected):
    """Errors of the value and of both gradients, as shares of their standard deviations."""
    pairs = zip(found, expected, strict=True)
    return [float(np.std(np.asarray(a, np.float32) - np.asarray(b)) / np.std(b)) for a, b in pairs]


@pytest.mark.run
@settings(max_examples=15)
@given(
    height=st.integers(1, 21),
    width=st.integers(1, 5),
    batch=st.integers(1, 4),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    columns=st.integers(1, 4),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.tuples(st.integers(3, 4), st.integers(3, 4)),
)
def test_any_map_and_columns(height, width, batch, channels, columns, stride, dilation, padding):
    x, kernel = random_arrays((height, width, batch, channels[0]), (3, columns, *channels))
    window = Window((1, stride), ((1, 1), padding), (1, dilation))
    found, expected = (with_gradients(convolve, x, kernel, window) for convolve in (winograd_conv, dense_conv))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("dtype", "most", "side"),
    [
        *[("bfloat16", 7e-3, side) for side in (9, 16)],  # Three and four rows at a time.
        *[("float32", 3e-6, side) for side in (3, 4, 5, 6, 9, 16)],
    ],
)
def test_rounding_stays_as_small_as_documented(dtype, most, side):
    x, kernel = random_arrays((side, side, 8, 64), (3, 3, 64, 64))
    expected = with_gradients(dense_conv, x, kernel, ONE_AROUND)
    assert max(errors(with_gradients(winograd_conv, x, kernel, ONE_AROUND, dtype), expected)) < most


@pytest.mark.parametrize(("dtype", "step"), [(dtype, step) for dtype, steps in module.POINTS.items() for step in steps])
def test_sums_read_no_row_in_vain(dtype, step):
    of_map, of_taps, of_result = module._weights(dtype, step)
    assert len(of_map) == len(of_taps) == len(of_result) == step + 2
    if step <= 4:
        least = np.min(
            np.abs([weight for rows in (of_map, of_taps, of_result) for row in rows for weight in row if weight])
        )
        assert least > 0.1
    if step % 2 == 0:
        # Points in opposite pairs: the sums for 0 and for infinity need every second row only.
        assert [sum(map(bool, row)) for row in of_map] == [step // 2 + 1, *[step] * step, step // 2 + 1]


@pytest.mark.parametrize(
    ("dtype", "height", "products"),
    [(dtype, *case) for dtype, fewest in FEWEST_PRODUCTS.items() for case in fewest.items()],
)
def test_the_fewest_products_are_taken(dtype, height, products):
    x, kernel = jnp.zeros((height, 3, 1536, 64), dtype), jnp.zeros((3, 3, 64, 64))
    assert has_fewer_products(x, kernel, ONE_AROUND)
    jaxpr = str(jax.make_jaxpr(lambda x, kernel: winograd_conv(x, kernel, ONE_AROUND))(x, kernel))
    step = next(step for step in module.POINTS[dtype] if -(-height // step) * (step + 2) == products)
    assert jaxpr.count("conv_general_dilated") == step + 2
    assert f"f{dtype[-2:]}[{-(-height // step)},3,1536,64]" in jaxpr


@pytest.mark.parametrize(
    ("height", "taps", "window"),
    [
        (2, 3, ONE_AROUND),
        (8, 1, ONE_AROUND),
        (8, 5, ONE_AROUND),
        (8, 3, ONE_AROUND._replace(strides=(2, 1))),
        (8, 3, ONE_AROUND._replace(dilation=(2, 1))),
        (8, 3, ONE_AROUND._replace(padding=((0, 2), (1, 1)))),
    ],
)
@pytest.mark.parametrize("dtype", module.POINTS)
def test_other_windows_are_left_to_the_dense_kernel(dtype, height, taps, window):
    x, kernel = jnp.zeros((height, 8, 1536, 64), dtype), jnp.zeros((taps, 3, 64, 64))
    assert not has_fewer_products(x, kernel, window)


@pytest.mark.parametrize(
    ("dtype", "height", "channels", "images"),
    [
        ("bfloat16", 5, (64, 64), 1536),
        ("bfloat16", 8, (63, 64), 1536),
        ("bfloat16", 8, (64, 63), 1536),
        ("float32", 8, (15, 64), 4096),
        ("float32", 8, (64, 15), 4096),
        ("float32", 8, (64, 64), 192),
        ("float16", 8, (64, 64), 1536),
    ],
)
def test_convolutions_that_would_not_be_faster_are_left_to_the_dense_kernel(dtype, height, channels, images):
    x, kernel = jnp.zeros((height, 8, images, channels[0]), dtype), jnp.zeros((3, 3, *channels))
    assert not has_fewer_products(x, kernel, ONE_AROUND)


@pytest.mark.skipif(not has_onednn("float32"), reason="XLA has no oneDNN on this machine")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dtype", "products"), [("bfloat16", 6), ("float32", 6)])
def test_every_product_is_computed_by_onednn_and_nothing_is_added_there(dtype, products, groups):
    x, kernel = random_arrays((64, 16, 16, 64 * groups), (3, 3, 64, 64 * groups))

    def gradients(x, kernel):
        with use_cpu_kernels(True):
            y, back = jax.vjp(partial(conv, groups=groups), x, kernel)
        return (y, *back(y))

    text = jax.jit(gradients, compiler_options=compiler_options()).lower(x.astype(dtype), kernel).compile().as_text()
    assert text.count('custom_call_target="__onednn$convolution"') == 3 * products * groups
    assert " convolution(" not in text
    assert "BINARY_ADD" not in text
