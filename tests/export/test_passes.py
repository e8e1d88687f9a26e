"""The passes: which graphs they make, and that they change no result."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import export
from export.verify import verify

PICTURE = ("batch", 8, 8, 3)

as_written = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="XLA before jax 0.12 combines the constants itself, and overflows or rounds"
)
"""Marks tests whose reference is JAX's own result of constants that must not be combined."""


def conv(x, features=4, window=3, *, padding="SAME", strides=1, groups=1, seed=0):
    shape = (window, window, x.shape[-1] // groups, features)
    w = np.random.default_rng(seed).normal(size=shape).astype(np.float32) / window
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (strides, strides), padding, dimension_numbers=dims, feature_group_count=groups
    )


def normalise(x):
    x = x.astype(jnp.float32) / 255
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.3, 0.4], np.float32)
    return (x - mean[None, None, None]) / std[None, None, None]


def affine(x, seed=3):
    random = np.random.default_rng(seed)
    scale, shift = random.normal(size=(2, *[1] * (x.ndim - 1), x.shape[-1])).astype(np.float32)
    return x * scale + shift


def pooled(x):
    return nn.relu(x).mean((1, 2))


def test_normalisation_goes_into_an_unpadded_convolution(exported):
    model = exported(lambda x: pooled(conv(normalise(x), padding="VALID")), PICTURE, dtype="uint8")
    assert model.ops == {"Cast": 1, "Transpose": 1, "Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1}


def test_a_scale_goes_into_a_padded_convolution(exported):
    model = exported(lambda x: pooled(conv(x.astype(jnp.float32) / 255)), PICTURE, dtype="uint8")
    assert model.ops["Mul"] == model.ops["Div"] == model.ops["Add"] == 0
    assert len(model.nodes("Conv")[0].input) == 2  # No bias was added.


def test_only_the_shift_of_a_normalisation_stays_before_padding(exported):
    model = exported(lambda x: pooled(conv(normalise(x))), PICTURE, dtype="uint8")
    assert model.ops["Add"] == 1
    assert model.ops["Mul"] == model.ops["Div"] == model.ops["Sub"] == 0


def test_a_dead_channel_before_padding_keeps_its_shift(exported):
    scale, shift = np.array([1, 0, 2], np.float32), np.array([0.5, 3, -1], np.float32)
    exported(lambda x: conv(x * scale[None, None, None] + shift[None, None, None]), PICTURE)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_affines_around_grouped_convolutions(exported, groups, padding):
    def fn(x):
        x = nn.relu(conv(x, 4))
        return pooled(affine(conv(affine(x), 8, padding=padding, groups=groups, seed=1), seed=4))

    assert exported(fn, PICTURE).ops["Add"] == (1 if padding == "SAME" else 0)


def test_batch_norm_is_gone_after_convolutions_and_dense_layers(exported, filled):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = lambda: nn.BatchNorm(use_running_average=True)  # noqa: E731
            x = nn.relu(norm()(nn.Conv(5, (3, 3))(x)))
            x = norm()(nn.Dense(6)(x.mean((1, 2))))
            return nn.Dense(3)(norm()(nn.relu(x)))

    variables = filled(Net(), jnp.zeros((1, 8, 8, 3)))
    model = exported(lambda x: Net().apply(variables, x), PICTURE)
    assert model.ops == {"Transpose": 1, "Conv": 1, "Relu": 2, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 2}
    assert model.names[1] == "Net/Conv_0/Conv"


def test_a_result_that_is_read_twice_is_not_folded_away(exported):
    def fn(x):
        y = conv(x)
        z = affine(y)
        return {"y": y, "z": z, "sum": affine(z, 5) + z}

    exported(fn, PICTURE)


def test_a_batch_norm_before_its_activation_is_two_operators(exported):
    model = exported(lambda x: pooled(affine((conv(x) + conv(x, seed=1)) - 0.5)), PICTURE)
    assert (model.ops["Mul"], model.ops["Add"], model.ops["Sub"]) == (1, 2, 0)


def test_what_varies_over_pixels_is_not_folded(exported):
    table = np.random.default_rng(0).normal(size=(1, 4, 1, 1)).astype(np.float32)
    exported(lambda x: conv(x, 4, strides=2) * table, PICTURE)
    exported(lambda x: conv(x, 4, strides=2) - table.reshape(1, 1, 4, 1), PICTURE)


def test_constant_minus_value_and_negation(exported):
    model = exported(lambda x: -(1.5 - conv(x)), PICTURE)
    assert model.ops == {"Transpose": 2, "Conv": 1}


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_several_negations_are_one(exported, dtype):
    assert exported(lambda x: jnp.negative(-jnp.negative(x)), PICTURE, dtype=dtype).ops == {"Neg": 1}
    assert exported(lambda x: jnp.negative(jnp.negative(x)), PICTURE, dtype=dtype).ops == {"Identity": 1}


@as_written
def test_weights_that_would_overflow_are_left_alone(exported, by_definition):
    model = exported(lambda x: conv(x * 1e-30) * 1e35 * 1e5, PICTURE)
    assert model.ops["Conv"] == 1
    # onnxruntime itself would fold these factors into the kernel, which then is infinite.
    model = exported(lambda x: conv(nn.relu(x * 1e-30)) * 1e20 * 1e20, PICTURE, runners=by_definition)
    assert model.ops["Mul"] == 3


@as_written
def test_shifts_that_round_are_left_alone(exported):
    model = exported(lambda x: conv(x) + 12582912.0 - 12582912.0, PICTURE)
    assert (model.ops["Add"], model.ops["Sub"]) == (1, 1)


def test_a_value_near_a_large_mean_keeps_its_digits(exported):
    def scaled(x):
        far = nn.relu(x + 1e5)  # Rounded to 1/128.
        return (far - 1e5) * 0.02

    assert exported(lambda x: conv(scaled(x), padding="VALID"), PICTURE).ops["Mul"] == 0
    exported(lambda x: scaled(x)[:, 0, 0] @ np.ones((3, 2), np.float32), PICTURE)
    exported(lambda x: nn.relu(scaled(x) / 3), PICTURE)


@as_written
def test_factors_whose_product_overflows_are_left_alone(exported):
    assert exported(lambda x: nn.relu(x * 1e-30) * 1e20 * 1e25, PICTURE).ops["Mul"] >= 2
    assert exported(lambda x: nn.relu(x * 1e-30 * 1e-10), PICTURE).ops["Mul"] == 2


FACTOR = np.array([2, 0.5, -3], np.float32).reshape(1, 3, 1, 1)
CHANNELS_FIRST = ("batch", 3, 8, 8)
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)


def conv_channels_first(x, padding="VALID"):
    return lax.conv(x, KERNEL, (1, 1), padding)


def mean(x):
    return x.mean((1, 2, 3), keepdims=True)


@pytest.mark.parametrize("product", [lambda x: x * (mean(x) * FACTOR), lambda x: (FACTOR * mean(x)) * x])
def test_a_factor_of_channels_beside_one_of_pictures_is_folded(exported, product):
    assert exported(lambda x: nn.relu(conv_channels_first(product(x))), CHANNELS_FIRST).ops["Mul"] == 1


def test_a_factor_of_channels_stays_where_it_is_needed(exported):
    def read_twice(x):
        factor = mean(x) * FACTOR
        return {"product": x * factor, "factor": factor}

    assert exported(read_twice, CHANNELS_FIRST).ops["Mul"] == 2
    product = lambda x: x * (conv_channels_first(x, "SAME") * FACTOR)  # noqa: E731
    assert exported(product, CHANNELS_FIRST).ops["Mul"] == 1


def test_a_factor_that_makes_channels_of_one_stays(exported):
    one = ("batch", 1, 8, 8)
    assert exported(lambda x: conv_channels_first(nn.relu(x) * FACTOR), one).ops["Mul"] == 1
    assert exported(lambda x: conv_channels_first(x * (mean(x) * FACTOR)), one).ops["Mul"] == 2


def test_channels_without_a_scale_or_a_shift(exported):
    exported(lambda x: nn.relu(x * (FACTOR - 0.5) + 1000.0), CHANNELS_FIRST)
    assert exported(lambda x: nn.relu(x + FACTOR + 3.0), CHANNELS_FIRST).ops == {"Add": 1, "Relu": 1}


def test_a_division_by_zero_is_left_alone(exported):
    assert exported(lambda x: nn.relu(x / (FACTOR - 0.5)), CHANNELS_FIRST).ops["Div"] == 1


def test_a_factor_and_its_inverse_cancel(exported):
    assert exported(lambda x: nn.relu(x * 3.0 * np.float32(1 / 3)), PICTURE).ops == {"Relu": 1}


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("order", [(2, 4, 5), (5, 2, 4), (4, 5, 2)])
@pytest.mark.parametrize(("window", "padding", "strides"), [(3, "SAME", 1), (1, "VALID", 1), (2, ((1, 0), (0, 1)), 2)])
def test_patches_become_a_convolution_of_pixels(exported, side, order, window, padding, strides):
    def fn(x):
        batch, height, width, channels = x.shape
        split = x.reshape(batch, height // side, side, width // side, side, channels)
        patches = split.transpose(0, 1, 3, *order).reshape(batch, height // side, width // side, -1)
        return pooled(conv(patches, 4, window, padding=padding, strides=strides))

    model = exported(fn, ("batch", 8, 12, 3))
    assert model.ops["Transpose"] == 1
    assert model.ops["Reshape"] == 0
    assert list(model.attribute("Conv", "kernel_shape")) == [window * side] * 2


@pytest.mark.parametrize(
    ("sizes", "permutation"),
    [((2, 4, 2, 4), (0, 2, 4, 1, 3, 5)), ((4, 2, 4, 2), (0, 3, 1, 2, 4, 5)), ((4, 2, 4, 2), (0, 1, 4, 3, 2, 5))],
)
def test_other_regroupings_of_pixels_are_not_taken_for_patches(exported, sizes, permutation):
    def regrouped(x):
        split = x.reshape(x.shape[0], *sizes, 3)
        return conv(split.transpose(permutation).reshape(x.shape[0], 4, 4, 12))

    exported(regrouped, PICTURE)


@pytest.mark.parametrize(("axis", "fused"), [(0, 0), (1, 1)])
def test_a_scale_of_examples_is_not_taken_for_one_of_channels(exported, axis, fused):
    scale = np.expand_dims(np.arange(4, dtype=np.float32), [other for other in range(3) if other != axis])

    def group_norm(x):
        groups = x.reshape(4, 2, 2, 9)
        mean, squares = groups.mean((2, 3)), (groups * groups).mean((2, 3))
        variance = jnp.maximum(squares - mean * mean, 0)
        mean, variance = (jnp.repeat(value, 2, 1)[..., None] for value in (mean, variance))
        return (x - mean) * (lax.rsqrt(variance + 1e-3) * scale)

    assert exported(group_norm, (4, 4, 9)).ops["InstanceNormalization"] == fused


def test_flattening_reorders_the_rows_of_the_dense_layer(exported, filled):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = conv(x, 4, strides=2)
            return nn.Dense(5)(x.reshape(x.shape[0], -1))

    variables = filled(Net(), jnp.zeros((1, 8, 12, 3)))
    model = exported(lambda x: Net().apply(variables, x), ("batch", 8, 12, 3))
    assert model.ops == {"Transpose": 1, "Conv": 1, "Reshape": 1, "Gemm": 1}


def test_a_number_of_more_axes_behind_a_sum_with_two_symbolic_sizes(tmp_path):
    def fn(x):
        total = x.sum(-1, keepdims=True)
        return total * jnp.full_like(total, 3)

    inputs = {"x": ("float32", ("batch", "length", 4))}
    (tmp_path / "m.onnx").write_bytes(export.to_onnx(fn, inputs).SerializeToString())
    verify(tmp_path / "m.onnx", fn, inputs)


def test_a_loop_has_its_weights_once(exported):
    w = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32) / 4
    step = lambda state, row: (jnp.tanh(state @ w + row + w[:1]), None)  # noqa: E731
    model = exported(lambda x: lax.scan(step, x[:, 0], x.swapaxes(0, 1))[0], ("batch", 5, 16))
    assert model.ops["Gemm"] == 5
    assert [array.dims for array in model.proto.graph.initializer].count([16, 16]) == 1


def test_two_layers_share_the_transpose_of_their_input(exported):
    def fn(x):
        x = normalise(x)
        return pooled(conv(x) + conv(x, seed=1))

    model = exported(fn, PICTURE, dtype="uint8")
    assert model.ops["Transpose"] == 1


def test_activations_behind_a_convolution_stay_channels_first(exported):
    model = exported(lambda x: nn.leaky_relu(conv(x), 0.3), PICTURE)
    assert [node.op_type for node in model.proto.graph.node] == ["Transpose", "Conv", "LeakyRelu", "Transpose"]


def test_probabilities_are_one_softmax(exported):
    def fn(x):
        logits = pooled(conv(x))
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    model = exported(fn, PICTURE)
    assert model.ops["Softmax"] == 1
    assert model.ops["Exp"] == model.ops["ReduceMax"] == 0


def resize(x, shape, method="linear", **options):
    return jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), method, **options)


PLAIN = {"Cast": 1, "Transpose": 1, "Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1}


@pytest.mark.parametrize(
    ("shape", "order", "padding"),
    [
        ((10, 10), "resized, then normalised", "SAME"),
        ((16, 8), "resized, then normalised", "VALID"),
        ((8, 11), "normalised, then resized", "SAME"),
        ((21, 13), "normalised, then resized", "VALID"),
    ],
)
def test_a_picture_enlarged_and_normalised_is_one_resize(exported, shape, order, padding):
    def fn(x):
        x = x.astype(jnp.float32)
        x = normalise(resize(x, shape)) if order.startswith("resized") else resize(normalise(x), shape)
        return pooled(conv(x, padding=padding))

    model = exported(fn, PICTURE, dtype="uint8")
    assert model.ops == PLAIN | {"Resize": 1} | ({"Add": 1} if padding == "SAME" else {})
    assert [node.op_type for node in model.proto.graph.node][:2] == ["Cast", "Transpose"]
    scales = model.constant(model.nodes("Resize")[0].input[2])
    np.testing.assert_allclose(scales, [1, 1, shape[0] / 8, shape[1] / 8], rtol=1e-6)


def test_patches_of_an_enlarged_picture(exported):
    def fn(x):
        x = normalise(resize(x.astype(jnp.float32), (12, 12)))
        patches = x.reshape(x.shape[0], 6, 2, 6, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], 6, 6, 12)
        return pooled(conv(patches))

    assert exported(fn, PICTURE, dtype="uint8").ops == PLAIN | {"Resize": 1, "Add": 1}


@pytest.mark.parametrize(
    ("shape", "options"),
    [((5, 4), {}), ((12, 5), {}), ((11, 11), {"method": "cubic"}), ((3, 16), {"method": "lanczos3"})],
)
def test_other_weights_than_linear_ones_stay_products(exported, shape, options):
    def fn(x):
        return pooled(conv(normalise(resize(x.astype(jnp.float32), shape, **options)), padding="VALID"))

    model = exported(fn, PICTURE, dtype="uint8")
    assert model.ops == PLAIN | {"MatMul": 2}
    assert [node.op_type for node in model.proto.graph.node][:2] == ["Cast", "Transpose"]


def test_weights_that_are_nearly_linear_stay_products(exported):
    weights = np.array(jax.image.resize(np.eye(8, dtype=np.float32), (10, 8), "linear"))
    weights[4, 3] += 1e-4
    fn = lambda x: pooled(conv(jnp.einsum("nhwc,vw->nhvc", x, weights)))  # noqa: E731
    assert exported(fn, PICTURE).ops["Resize"] == 0


def test_shrinking_without_antialiasing_is_a_resize(exported):
    model = exported(lambda x: pooled(conv(resize(x, (5, 7), antialias=False))), PICTURE)
    assert (model.ops["Resize"], model.ops["MatMul"], model.ops["Transpose"]) == (1, 0, 1)


def test_maps_inside_a_network_are_resized_where_they_are(exported):
    def fn(x):
        y = nn.relu(conv(x, strides=2))
        return pooled(conv(x) + resize(y, (8, 8)))

    model = exported(fn, PICTURE)
    assert (model.ops["Resize"], model.ops["MatMul"], model.ops["Transpose"]) == (1, 0, 1)


def test_a_resized_map_that_is_read_twice(exported):
    def fn(x):
        y = resize(x, (12, 10))
        return {"pooled": pooled(conv(y)), "map": y, "rows": resize(x, (12, 8))}

    exported(fn, PICTURE)


def test_channels_first_in_the_function_itself(exported):
    def fn(x):
        x = jax.image.resize(x, (x.shape[0], 4, 9, 12), "linear")
        return nn.relu(x) * 2

    assert exported(fn, ("batch", 4, 6, 8)).ops == {"Resize": 1, "Relu": 1, "Mul": 1}
