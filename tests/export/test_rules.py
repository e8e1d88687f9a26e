"""Rules: each primitive in the variants that networks use, compared with JAX, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax.linen import pooling
from jax import lax

import export

IMAGE = ("batch", 7, 6, 4)
MATRIX = ("batch", 5)


def kernel(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "fn",
    [
        jnp.abs, jnp.tanh, jnp.exp, jnp.sin, jnp.floor, jnp.ceil, jnp.sign, jnp.negative, jnp.square, jnp.round,
        lax.logistic, lax.erf, lax.stop_gradient, jnp.exp2,
        lambda x: jnp.log(jnp.abs(x) + 1), lambda x: jnp.sqrt(jnp.abs(x)), lambda x: lax.rsqrt(jnp.abs(x) + 0.1),
        lambda x: jnp.log1p(jnp.abs(x)), jnp.expm1,
        lambda x: x**3, lambda x: (jnp.abs(x) + 1) ** -2, lambda x: (jnp.abs(x) + 1) ** 0.7, lambda x: x**2,
        lambda x: 2 - x, lambda x: 1 / (x * x + 1), lambda x: -x / 4 + 0.5,
        lambda x: jnp.clip(x, -0.5, 0.5), lambda x: jnp.minimum(x, 0.2), lambda x: jnp.maximum(x, -0.2),
        lambda x: jnp.where(x > 0.1, x, 7.0), lambda x: jnp.where(x != 0, 1.0, x), lambda x: ~(x <= 0),
        lambda x: (x > 0) & (x < 1) | (x == 2), lambda x: (x > 0).astype(jnp.float32),
        lambda x: (x * 9).astype(jnp.int32) + 2,
    ],
)  # fmt: skip
def test_elementwise(exported, fn):
    exported(fn, MATRIX)


@pytest.mark.parametrize(
    ("fn", "op"),
    [
        (nn.relu, "Relu"),
        (nn.relu6, "Clip"),
        (nn.leaky_relu, "LeakyRelu"),
        (lambda x: nn.leaky_relu(x, 0.3), "LeakyRelu"),
        (nn.softmax, "Softmax"),
        (lambda x: nn.softmax(x, axis=1), "Softmax"),
        (nn.sigmoid, "Sigmoid"),
        (nn.silu, None),
        (nn.gelu, None),
        (lambda x: nn.gelu(x, approximate=False), None),
        (nn.elu, "Elu"),
        (lambda x: nn.elu(x, 0.5), "Elu"),
        (nn.hard_sigmoid, "HardSigmoid"),
        (nn.hard_swish, None),
        (nn.log_softmax, None),
        (nn.softplus, None),
    ],
)
def test_activations(exported, fn, op):
    model = exported(fn, ("batch", 3, 5))
    if op is not None:
        assert model.ops == {op: 1}


def test_a_gate_is_no_part_of_a_hard_swish(exported):
    swish = exported(nn.hard_swish, ("batch", 3, 5))
    assert swish.ops == {"HardSigmoid": 1, "Mul": 1}
    # OpenCV would take the product for a hard swish of the gate's argument.
    gated = exported(lambda x: x * nn.hard_sigmoid(x.mean(1, keepdims=True)), ("batch", 3, 5))
    assert gated.ops["HardSigmoid"] == 0
    assert gated.ops["Clip"] == 1


def test_the_scale_of_a_gate_is_part_of_the_layer_before_it(exported):
    gated = exported(lambda x: x * nn.hard_sigmoid(x @ kernel(5, 5) + kernel(1, 5)), MATRIX)
    assert gated.ops == {"Gemm": 1, "Clip": 1, "Mul": 1}


def test_an_exact_gelu_has_the_form_that_runtimes_know(exported):
    model = exported(lambda x: nn.gelu(x, approximate=False), ("batch", 3, 5))
    assert model.ops == {"Mul": 2, "Div": 1, "Erf": 1, "Add": 1}


def test_a_function_named_like_an_activation_keeps_its_own_meaning(exported):
    @jax.jit
    def leaky_relu(x):
        return jnp.where(x >= 0.25, x, 0.1 * x)

    @jax.jit
    def softmax(x):
        return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)

    assert "LeakyRelu" not in exported(leaky_relu, MATRIX).ops
    assert "Softmax" not in exported(softmax, MATRIX).ops


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.where(x > 0.1, x, jnp.expm1(jnp.where(x > 0.1, 0, x))),
        lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.where(x > 0, 0.5, x))),
        lambda x: jnp.where(x > 0, 2 * x, jnp.expm1(x)),
        lambda x: jnp.minimum(nn.relu(x + 3), 6) / 5,
        lambda x: jnp.minimum(nn.relu(x), -1.0),
        lambda x: jnp.minimum(nn.relu(x + jnp.arange(5.0)[None, None]), 6) / 6,
        lambda x: (x - x.mean(1, keepdims=True)) * lax.rsqrt(x.var(2, keepdims=True) + 1e-3),
        lambda x: (x - x.mean(2, keepdims=True)) * lax.rsqrt(nn.relu((x * x).mean(2, keepdims=True)) + 1e-3),
        lambda x: x.sum(2) / 4,
        lambda x: 1 - lax.erf(x * 0.3),
    ],
)
def test_near_misses_keep_their_meaning(exported, fn):
    exported(fn, ("batch", 3, 5))


@pytest.mark.parametrize(
    "divisor",
    [
        lambda e, x: e.sum(axis=1, keepdims=True),
        lambda e, x: e.sum(axis=2)[:, None, :],
        lambda e, x: jnp.exp(x / 2).sum(axis=2, keepdims=True),
        lambda e, x: e.sum(axis=(1, 2), keepdims=True),
    ],
)
@pytest.mark.parametrize("axis", [1, 2])
def test_other_quotients_of_exponentials_keep_their_meaning(exported, divisor, axis):
    def normalise(x):
        e = jnp.exp(x - x.max(axis=axis, keepdims=True))
        return e / divisor(e, x)

    exported(normalise, ("batch", 3, 3))


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
@pytest.mark.parametrize(
    ("window", "options"),
    [
        ((3, 3), {}),
        ((2, 2), {"strides": 2}),
        ((1, 1), {"strides": (2, 1)}),
        ((3, 2), {"feature_group_count": 4, "features": 8}),
        ((3, 3), {"feature_group_count": 2, "strides": (1, 2)}),
        ((2, 3), {"kernel_dilation": (2, 1)}),
    ],
)
def test_convolution(exported, filled, padding, window, options):
    module = nn.Conv(**{"features": 6} | options, kernel_size=window, padding=padding)
    variables = filled(module, jnp.zeros((1, 7, 6, 4)))
    model = exported(lambda x: module.apply(variables, x), IMAGE)
    assert model.ops["Conv"] == 1
    assert model.ops["Add"] == 0
    assert model.ops["Transpose"] == 2  # Channels-first inside, channels-last outside.


def test_convolution_of_one_axis(exported):
    w = kernel(3, 4, 5)
    exported(
        lambda x: lax.conv_general_dilated(x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")), ("batch", 9, 4)
    )


def test_convolution_in_channels_first_needs_no_transpose(exported):
    w = kernel(5, 4, 3, 3)
    model = exported(lambda x: lax.conv(x, w, (1, 1), "SAME"), ("batch", 4, 6, 6))
    assert model.ops == {"Conv": 1}


@pytest.mark.parametrize(
    ("pool", "op"),
    [(nn.max_pool, "MaxPool"), (nn.avg_pool, "AveragePool"), (pooling.min_pool, "MaxPool")],
)
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 1), (0, 1))])
@pytest.mark.parametrize(("window", "strides"), [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((2, 3), (1, 1))])
def test_pooling(exported, pool, op, padding, window, strides):
    # Flax divides by an integer.
    with jax.numpy_dtype_promotion("standard"):
        model = exported(lambda x: pool(x, window, strides, padding), IMAGE)
    assert model.ops[op] == 1
    assert list(model.attribute(op, "kernel_shape")) == list(window)


def test_average_pooling_without_padding_in_the_count(exported):
    exported(lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False), IMAGE)


def test_plain_average_pooling_leaves_no_scale(exported):
    with jax.numpy_dtype_promotion("standard"):
        model = exported(lambda x: nn.avg_pool(x, (2, 2), (2, 2)), IMAGE)
    assert model.ops == {"Transpose": 2, "AveragePool": 1}


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sum((1, 2)), lambda x: x[:, :0].sum((1, 2)), lambda x: x.mean((1, 2)),
        lambda x: x.mean(-1, keepdims=True), lambda x: x.max((2, 3)),
        lambda x: x.min(1), lambda x: x.prod(-1), lambda x: x.var((1, 2)), lambda x: x.argmax(-1),
        lambda x: x.argmin(2), lambda x: jnp.sum(x * x, axis=(1, 3)), lambda x: jax.nn.logsumexp(x, axis=-1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("convolved", [False, True])
def test_reduction(exported, fn, convolved):
    w = kernel(3, 3, 4, 4) / 6

    def both(x):
        if convolved:
            x = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return fn(x)

    exported(both, IMAGE)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.reshape(x.shape[0], -1), lambda x: x.reshape(-1, 4), lambda x: x.reshape(x.shape[0], 42, 2, 2),
        lambda x: x[:, None] + 1, lambda x: x.transpose(3, 0, 2, 1), lambda x: x.transpose(0, 2, 1, 3).reshape(-1, 28),
        lambda x: x[:, 1:6, :-1], lambda x: x[..., :2] * x[..., 2:], lambda x: x[:, -1, 2],
        lambda x: jnp.flip(x, (1, 3)),
        lambda x: lax.slice(x, (0, 1, 0, 0), (*x.shape[:1], 6, 6, 3), (1, 2, 3, 1)),
        lambda x: jnp.swapaxes(x, 1, 3)[:, 0:1].squeeze(1),
        lambda x: jnp.concatenate([x, x * 2, jnp.zeros_like(x)], axis=-1), lambda x: jnp.stack([x, -x], axis=2),
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=0.5),
        lambda x: jnp.broadcast_to(x[:, :1], x.shape), lambda x: x + jnp.broadcast_to(jnp.arange(4.0), x.shape),
        lambda x: jnp.broadcast_to(jnp.arange(3.0)[None], (x.shape[0], 3)), lambda x: jnp.ones_like(x) * 3,
        lambda x: x[:, :, :, None, :] * x[:, :, :, :, None], lambda x: x, lambda x: {"a": x, "b": x, "c": x + 1},
        lambda x: x.mean(0), lambda x: x.var(0),
        lambda x: {"z": x.sum(), "constant": jnp.arange(3.0), "m": x.max(0)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("convolved", [False, True])
def test_shapes(exported, fn, convolved):
    w = kernel(1, 1, 4, 4)

    def both(x):
        if convolved:
            x = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return fn(x)

    exported(both, IMAGE, batches=(3, 1))


def test_a_value_with_its_axes_in_several_orders(exported):
    shape = ("batch", 4, 4, 4)
    exported(lambda x: {"a": x.transpose(0, 2, 3, 1), "b": x.transpose(0, 3, 1, 2)}, shape)

    def fn(x):
        y = lax.conv(x, kernel(4, 4, 1, 1), (1, 1), "VALID").transpose(0, 2, 3, 1)
        return {"map": y, "swapped": y.swapaxes(1, 2)}

    exported(fn, shape)


@pytest.mark.parametrize(
    ("equation", "other"),
    [
        ("bi,ij->bj", (5, 3)),
        ("bi,ji->bj", (3, 5)),
        ("bi,ij->jb", (5, 3)),
        ("bi,i->b", (5,)),
        ("bi,ijk->bjk", (5, 2, 3)),
        ("ji,bi->jb", (3, 5)),
    ],
)
def test_products_with_constants(exported, equation, other):
    w = kernel(*other)
    operands = (lambda x: (w, x)) if equation.startswith("ji,b") else (lambda x: (x, w))
    exported(lambda x: jnp.einsum(equation, *operands(x)), MATRIX)


@pytest.mark.parametrize("equation", ["bqd,bkd->bqk", "bqd,bqk->bdk", "bqd,bkd->bqd", "bqd,bqd->b", "bqd,bqe->bqde"])
def test_products_of_tensors(exported, equation):
    exported(lambda x: jnp.einsum(equation, x, x + 1), ("batch", 3, 3))


def test_dense_layers_on_maps_and_vectors(exported, filled):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Dense(6)(x).mean((1, 2)))

    variables = filled(Both(), jnp.zeros((1, 7, 6, 4)))
    exported(lambda x: Both().apply(variables, x), IMAGE)


def test_broadcasts_that_the_operands_need_stay(exported):
    ones = np.ones((1, 6, 4), np.float32)
    exported(lambda x: x[:, :1, :] * ones, ("batch", 6, 4))
    exported(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 3, 5)) + 1, MATRIX)


def test_wrapped_modules_are_entered(exported, filled):
    class Wrapped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.jit(nn.Dense)(3, name="inner")(nn.remat(nn.Dense)(5, name="outer")(x))

    variables = filled(Wrapped(), jnp.zeros((1, 5)))
    model = exported(lambda x: Wrapped().apply(variables, x), MATRIX)
    assert model.ops == {"Gemm": 2}
    assert all("outer" in model.names[0] and "inner" in name for name in model.names[1:])


@jax.custom_vjp
def by_custom_vjp(x):
    return lax.optimization_barrier(jnp.sin(x)) * 2


by_custom_vjp.defvjp(lambda x: (by_custom_vjp(x), x), lambda x, g: (g * jnp.cos(x) * 2,))


@jax.custom_jvp
def by_custom_jvp(x):
    return jax.checkpoint(lambda y: jax.jit(jnp.tanh)(y) + 1)(x)


by_custom_jvp.defjvp(lambda primals, tangents: (by_custom_jvp(*primals), tangents[0]))


def test_functions_with_custom_derivatives_are_entered(exported):
    model = exported(lambda x: by_custom_jvp(by_custom_vjp(x)), MATRIX)
    assert model.ops == {"Sin": 1, "Mul": 1, "Tanh": 1, "Add": 1}


def test_a_convolution_in_half_precision_with_a_custom_derivative(exported):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32) / 6

    @jax.custom_vjp
    def conv(x):
        dims = ("NHWC", "HWIO", "NHWC")
        narrow = jnp.asarray(kernel, jnp.bfloat16)
        return lax.conv_general_dilated(x.astype(jnp.bfloat16), narrow, (1, 1), "SAME", dimension_numbers=dims)

    conv.defvjp(lambda x: (conv(x), None), lambda _, g: (g,))
    model = exported(lambda x: conv(x).astype(jnp.float32).mean((1, 2)), IMAGE, tolerance=0.03)
    assert model.ops == {"Transpose": 1, "Conv": 1, "GlobalAveragePool": 1, "Flatten": 1}
    assert {array.data_type for array in model.proto.graph.initializer} <= {1, 7}


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: lax.igamma(x, x), "'igamma'"),
        (lambda x: lax.nextafter(x, x), "'nextafter'"),
        (lambda x: lax.cummax(x), "'cummax' with a symbolic size"),
        (lambda x: lax.cumlogsumexp(x.astype(jnp.int8), axis=1), "'cumlogsumexp' .* cannot convert float infinity"),
        (lambda x: jnp.fft.fft(x).real, "complex64"),
        (lambda x: lax.while_loop(lambda y: y.max() < 9, lambda y: y + 1, x), "'while' with .*depends on the inputs"),
        (lambda x: lax.scan(lambda c, row: (c + row, c), x[0], x)[0], "'scan' with a symbolic number of steps"),
        (lambda x: lax.fori_loop(0, 2000, lambda i, y: y + 1, x), "'scan' with more than 1024 steps"),
        (lambda x: x.at[:, np.array([1, 3])].max(0.2), "'scatter-max'"),
        (lambda x: x.at[:, 1].apply(jnp.sin), "'scatter' with a function that is applied to elements"),
        (lambda x: lax.reduce_precision(x, 5, 7), "'reduce_precision' with a smaller exponent"),
        (lambda x: lax.reduce_precision(x, 8, 0), "'reduce_precision' with no mantissa"),
        (lambda x: (x, x), "array or a dict"),
        (lambda x: {"x0": x}, "share names"),
        (lambda x: x if x.shape[0] > 3 else -x, "symbolic size"),
        (lambda x: x[x.shape[0] // 2 :], "'gather' with slices of a symbolic size at computed positions"),
        (lambda x: x / np.sqrt(x.shape[0]), "needs the number that a symbolic size stands for: .*; give the size as a"),
        (lambda x: x + np.zeros(x.shape, np.float32), "needs the number"),
        (lambda x: x.sum(0) / len(x), "needs the number"),
        (lambda x: jnp.split(x, 3)[0], "needs the number"),
        (lambda x: x + jax.random.normal(jax.random.key(0), x.shape), "random numbers of a symbolic size"),
        (
            lambda x: nn.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)}),
            r"random numbers of a symbolic size .*at Dropout_?0?\); draw none, as Dropout with deterministic=True",
        ),
    ],
)
def test_what_has_no_translation_is_refused(fn, words):
    with pytest.raises(export.UnsupportedError, match=words) as caught:
        export.to_onnx(fn, {"x0": ("float32", MATRIX)})
    assert "\n" not in str(caught.value)


def test_an_error_of_the_function_is_passed_on():
    def refuse(x):
        raise ValueError("not my picture")

    with pytest.raises(ValueError, match="not my picture"):
        export.to_onnx(refuse, {"x0": ("float32", MATRIX)})


def test_constants_are_multiplied_in_float32_on_accelerators():
    precisions = []

    def fn(x):
        precisions.append(jax.config.jax_default_matmul_precision)
        return x @ (kernel(5, 5) @ kernel(5, 5))

    export.to_onnx(fn, {"x0": ("float32", MATRIX)})
    assert precisions == ["highest"]


def test_random_numbers_of_known_size_are_constants(exported):
    key = jax.random.key(0)
    exported(lambda x: x + jax.random.normal(key, (5,))[None], MATRIX)


def test_variants_without_translation_are_refused():
    ints = lambda x: x.astype(jnp.int32)  # noqa: E731
    with pytest.raises(export.UnsupportedError, match="'reduce_prod' with integers along a symbolic size"):
        export.to_onnx(lambda x: ints(x).prod(0), {"x0": ("float32", MATRIX)})
    pool = lambda x: lax.reduce_window(ints(x), 0, lax.bitwise_or, (1, 2), (1, 1), "SAME")  # noqa: E731
    with pytest.raises(export.UnsupportedError, match="'reduce_window' with the bits of int32"):
        export.to_onnx(pool, {"x0": ("float32", MATRIX)})
    with pytest.raises(export.UnsupportedError, match="'conv_general_dilated' with no axis to slide along"):
        export.to_onnx(lambda x: lax.conv(x, kernel(4, 5), (), "SAME"), {"x0": ("float32", MATRIX)})
    dims = ("NHWC", "HWIO", "NHWC")
    own = lambda x: lax.conv_general_dilated(x[None], x[:2, :2, :, None], (1, 1), "SAME", dimension_numbers=dims)  # noqa: E731
    with pytest.raises(export.UnsupportedError, match="'conv_general_dilated' with a symbolic number of groups"):
        export.to_onnx(jax.vmap(own), {"x0": ("float32", IMAGE)})
    sought = lambda x: lax.conv(jnp.ones((1, 5, 64)), x.T[None], (1,), "VALID")  # noqa: E731
    with pytest.raises(export.UnsupportedError, match="'conv_general_dilated' with a symbolic window"):
        export.to_onnx(sought, {"x0": ("float32", MATRIX)})
    w = np.ones((3, 4, 2), np.int32)
    conv = lambda x: lax.conv_general_dilated(ints(x), w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))  # noqa: E731
    words = "cannot export the primitive 'conv_general_dilated' with int32 operands at the top"
    with pytest.raises(export.UnsupportedError, match=words):
        export.to_onnx(conv, {"x0": ("float32", ("batch", 7, 4))})


def test_a_refusal_names_the_module(filled):
    class Sorter(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lax.nextafter(nn.Dense(3)(x), x[:, :3])

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Sorter(name="head")(x)

    variables = filled(Net(), jnp.zeros((1, 5)))
    with pytest.raises(export.UnsupportedError, match=r"'nextafter' at Net/head; .*add a rule in export/rules"):
        export.to_onnx(lambda x: Net().apply(variables, x), {"x0": ("float32", MATRIX)})


def test_an_input_of_a_type_that_jax_narrows_is_refused():
    with pytest.raises(
        export.UnsupportedError, match="jax converts the int64 input 'x0' to int32; declare it as int32"
    ):
        export.to_onnx(lambda x: x, {"x0": ("int64", MATRIX)})


def test_an_input_in_half_precision_becomes_float32():
    model = export.to_onnx(lambda x: x * 2, {"x0": ("bfloat16", MATRIX)})
    kinds = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("divisor", [7, -3, np.array([[1, 2, 3, 4, 5]], np.int32)])
def test_a_constant_divisor_of_integers_is_one_operator(exported, divisor):
    model = exported(lambda x: lax.div(x, jnp.broadcast_to(jnp.int32(divisor), x.shape)), MATRIX, dtype="int32")
    assert model.ops["Div"] == 1
    assert model.ops.keys() <= {"Div", "Expand", "Shape", "Concat"}


def test_a_cast_of_bytes(exported):
    exported(lambda x: x.astype(jnp.float32) * 2, MATRIX, dtype="uint8")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.pad(x * 2**40, ((0, 0), (1, 2)), constant_values=-(2**50)),
        lambda x: x.at[:, np.array([0, 2, 2])].add(2**40), lambda x: x.at[:, 1].multiply(2**40),
        lambda x: x.at[:, 1].subtract(x[:, 0] * 2**40), lambda x: x << 41, lambda x: -x * 2**40 >> 62,
        lambda x: ((x.astype(jnp.float32) - 100) * 1e30).astype(jnp.int64),
        lambda x: ((x.astype(jnp.float32) - 100) * 1e15).astype(jnp.int64),
        lambda x: (jnp.sqrt(x.astype(jnp.float32) - 100) * 9).astype(jnp.int64),
        lambda x: (x * 2**54 + 3).sum((0, 1)),
    ],
)  # fmt: skip
def test_integers_of_64_bits(exported, fn):
    with jax.enable_x64(True):
        exported(fn, MATRIX, dtype="int64", tolerance=0)


def test_a_remainder_of_64_bits_is_not_computed_in_floats(exported):
    def fn(x):
        large = x * 2**50 + 3
        return {"known": lax.rem(large, jnp.full_like(x, -7)), "computed": lax.rem(large, x - 100)}

    with jax.enable_x64(True):
        model = exported(fn, MATRIX, dtype="int64", tolerance=0)
    # onnxruntime 1.27 computes Mod in double precision.
    assert model.ops["Mod"] == 0


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: x & 7, "'and' .*: the bits of int64"),
        (lax.clz, "'clz' .*: the bits of int64"),
        (lambda x: x >> 63, "'shift_right_arithmetic' with these int64 operands"),
        (lambda x: x << x, "'shift_left' with these int64 operands"),
        (lambda x: lax.shift_right_logical(x, jnp.full_like(x, 2)), "'shift_right_logical' with these int64 operands"),
    ],
)
def test_bits_that_64_bits_do_not_hold_are_refused(fn, words):
    with jax.enable_x64(True), pytest.raises(export.UnsupportedError, match=words):
        export.to_onnx(fn, {"x0": ("int64", MATRIX)})
