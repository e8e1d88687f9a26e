"""Verification finds every kind of defect that a file can have."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import export
from export.verify import verify

INPUTS = {"image": ("uint8", ("batch", 8, 8, 3))}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2)(x.astype(jnp.float32) / 255 - 0.5)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


@pytest.fixture(scope="module")
def fn(filled):
    variables = filled(Net(), jnp.zeros((1, 8, 8, 3), jnp.uint8))

    def classify(image):
        logits = Net().apply(variables, image)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    return classify


@pytest.fixture(scope="module")
def original(fn):
    return export.to_onnx(fn, INPUTS)


@pytest.fixture
def model(original):
    copy = onnx.ModelProto()
    copy.CopyFrom(original)
    return copy


@pytest.fixture
def check(fn, tmp_path):
    def write_and_verify(model, **options):
        path = tmp_path / "m.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return verify(path, options.pop("fn", fn), options.pop("inputs", INPUTS), **options)

    return write_and_verify


def node(model, op):
    return next(node for node in model.graph.node if node.op_type == op)


def attribute(model, op, name):
    return next(field for field in node(model, op).attribute if field.name == name)


def change(model, suffix, function):
    tensor = next(array for array in model.graph.initializer if array.name.endswith(suffix))
    tensor.CopyFrom(numpy_helper.from_array(function(numpy_helper.to_array(tensor).copy()), tensor.name))


def test_a_faithful_file_passes(check, model):
    check(model)
    check(model, samples={"image": np.full((9, 8, 8, 3), 200, np.uint8)})


def test_the_largest_difference_is_returned_and_may_be_allowed(check, model, fn):
    def other(image):
        outputs = fn(image)
        return outputs | {"logits": outputs["logits"] * 1.002}

    assert check(model, fn=other, tolerances={"logits": 0.01}) == pytest.approx(0.002, rel=0.01)
    with pytest.raises(export.VerificationError, match=r"logits of .* differs by"):
        check(model, fn=other, tolerances={"probabilities": 0.01})


def test_every_level_of_optimization_is_compared(check, model, monkeypatch):
    levels, opened = ort.GraphOptimizationLevel, []
    session = ort.InferenceSession

    def record(path, options, **others):
        opened.append(options.graph_optimization_level)
        return session(path, options, **others)

    monkeypatch.setattr(ort, "InferenceSession", record)
    check(model)
    assert opened == [levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL]


def one_weight(array):
    array.flat[0] += 0.01
    return array


@pytest.mark.parametrize("suffix", ["Conv_0/kernel", "Conv_0/bias", "Dense_0/kernel", "Dense_0/bias"])
def test_a_weight_that_is_off(check, model, suffix):
    change(model, suffix, one_weight)
    with pytest.raises(
        export.VerificationError, match=r"logits of a batch of 1 random inputs .* differs by .*, more than"
    ):
        check(model)


@pytest.mark.parametrize(
    ("suffix", "node"), [("Conv_0/kernel", "Net/Conv_0/Conv|Net/Relu"), ("Dense_0/kernel", "Net/Dense_0/Gemm")]
)
def test_the_first_node_that_differs_is_named(check, model, suffix, node):
    change(model, suffix, one_weight)
    words = rf"first node that differs is ({node}), by [\d.e-]+ where the largest value is \d"
    with pytest.raises(export.VerificationError, match=words):
        check(model)


def test_weights_that_are_not_numbers(check, model):
    change(model, "Dense_0/bias", lambda array: array * np.nan)
    with pytest.raises(export.VerificationError, match="not finite"):
        check(model)


def test_a_function_whose_values_are_not_numbers(check, model, fn):
    with pytest.raises(export.VerificationError, match="not finite"):
        check(model, fn=lambda image: {name: value * jnp.nan for name, value in fn(image).items()})


def test_floats_of_both_signs_are_compared(check):
    inputs = {"x": ("float32", ("batch", 3))}
    with pytest.raises(export.VerificationError, match="differs by"):
        check(export.to_onnx(lambda x: x, inputs), fn=jnp.abs, inputs=inputs)


def test_symbolic_sizes_that_are_mixed_up(check):
    inputs = {"x": ("float32", ("batch", "length", 4))}
    mixed = export.to_onnx(lambda x: x.sum(-1).reshape(x.shape[1], x.shape[0]), inputs)
    for size, name in zip(mixed.graph.output[0].type.tensor_type.shape.dim, ("batch", "length"), strict=True):
        size.dim_param = name
    with pytest.raises(export.VerificationError, match=r"float32\(7, 1\), not float32\(1, 7\)"):
        check(mixed, fn=lambda x: x.sum(-1), inputs=inputs)


def test_booleans_of_both_values_are_compared(check):
    inputs = {"x": ("bool", ("batch",))}
    with pytest.raises(export.VerificationError, match="differs by 1"):
        check(export.to_onnx(lambda x: x, inputs), fn=jnp.ones_like, inputs=inputs)


def test_samples_may_have_another_order_than_the_inputs(check):
    inputs = {"picture": ("uint8", ("batch", 4)), "weight": ("float32", ("batch", 4))}
    fn = lambda picture, weight: picture / 255 + jnp.exp(weight)  # noqa: E731
    samples = {"weight": np.ones((3, 4), np.float32), "picture": np.full((3, 4), 200, np.uint8)}
    with jax.numpy_dtype_promotion("standard"):
        check(export.to_onnx(fn, inputs), fn=fn, inputs=inputs, samples=samples)


def test_integers_must_be_equal(check):
    count = lambda image: image[:, 0, 0].astype(jnp.int32) + 100_000  # noqa: E731
    model = export.to_onnx(count, INPUTS)
    assert check(model, fn=count) == 0
    with pytest.raises(export.VerificationError, match="differs by 1, more than 0"):
        check(model, fn=lambda image: count(image) + 1)


@pytest.mark.parametrize("width", [0, 1])
def test_an_output_of_one_column_or_none_has_no_top_class(check, width):
    fn = lambda image: image[:, 0, 0, :width].astype(jnp.float32)  # noqa: E731
    assert check(export.to_onnx(fn, INPUTS), fn=fn) == 0


def test_a_pad_on_the_wrong_side(check, model):
    attribute(model, "Conv", "pads").ints[:] = attribute(model, "Conv", "pads").ints[::-1]
    with pytest.raises(export.VerificationError, match="differs by"):
        check(model)


def test_a_pad_that_changes_the_shape_inside(check, model):
    attribute(model, "MaxPool", "pads").ints[:] = [1, 1, 1, 1]
    with pytest.raises(export.VerificationError):
        check(model)


def test_another_permutation(check, model):
    attribute(model, "Transpose", "perm").ints[:] = [0, 3, 2, 1]
    with pytest.raises(export.VerificationError, match="differs by"):
        check(model)


def test_stale_shapes(check, model):
    name = node(model, "Conv").output[0]
    model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4, 4, 4]))
    with pytest.raises(export.VerificationError, match="value_info"):
        check(model)


def test_shapes_that_contradict_inference(check, model):
    name = node(model, "Conv").output[0]
    model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 9, 4, 4]))
    with pytest.raises(export.VerificationError, match="not valid ONNX"):
        check(model)


def test_a_file_cut_short(check, model):
    with pytest.raises(export.VerificationError, match="not valid ONNX"):
        check(model.SerializeToString()[:-100])


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda m: setattr(m, "ir_version", 10), "IR version 10, not 8"),
        (lambda m: setattr(m.opset_import[0], "version", 18), "operator sets"),
        (lambda m: m.graph.output.pop(), "outputs"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", onnx.TensorProto.INT8), "inputs"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].CopyFrom(dim(2)), "inputs|outputs"),
        (lambda m: m.graph.output[0].type.tensor_type.shape.dim[0].CopyFrom(dim("n")), "outputs"),
        (
            lambda m: node(m, "Conv").attribute.append(helper.make_attribute("auto_pad", "NOTSET")),
            "auto_pad at Net/Conv_0",
        ),
        (lambda m: node(m, "MaxPool").attribute.remove(attribute(m, "MaxPool", "pads")), "implicit pads"),
        (lambda m: node(m, "Conv").attribute.remove(attribute(m, "Conv", "kernel_shape")), "kernel_shape at Net/Conv"),
        (lambda m: insert(m, "Transpose", perm=[0, 1]), "2 Transposes"),
        (lambda m: insert(m, "NoSuchOperator"), "not valid ONNX"),
    ],
)
def test_a_structure_that_breaks_the_promise(check, model, break_it, words):
    break_it(model)
    with pytest.raises(export.VerificationError, match=words):
        check(model)


def dim(value):
    kind = onnx.TensorShapeProto.Dimension
    return kind(dim_value=value) if isinstance(value, int) else kind(dim_param=value)


def insert(model, op, **attributes):
    gemm = node(model, "Gemm")
    model.graph.node.insert(
        len(model.graph.node) - 2, helper.make_node(op, [gemm.input[0]], ["inserted"], name="inserted", **attributes)
    )
    gemm.input[0] = "inserted"


def test_a_batch_normalization_left_over(check, filled):
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])],
            [numpy_helper.from_array(np.ones(2, np.float32), "s")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 8
    with pytest.raises(export.VerificationError, match="BatchNormalization"):
        check(model)


@pytest.mark.parametrize(("other", "words"), [("x", "the file has the inputs"), ("s", "2 Transposes")])
def test_products_of_computed_matrices_may_be_transposed(check, other, words):
    square = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in "xy"]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("MatMul", ["t", other], ["product"]),
        helper.make_node("Transpose", ["product"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(np.ones((2, 2), np.float32), "s")]
    graph = helper.make_graph(nodes, "g", square[:1], square[1:], initializers)
    with pytest.raises(export.VerificationError, match=words):
        check(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_wrong_batch_size_fixed_in_the_graph(check, model):
    """A Reshape to a fixed batch of one is right for one picture, and wrong for seven."""
    gemm = node(model, "Gemm")
    shape = numpy_helper.from_array(np.array([1, -1], np.int64), "fixed")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("Identity", ["fixed"], ["shape"], name="shape"))
    position = [node.name for node in model.graph.node].index(gemm.name)
    model.graph.node.insert(position, helper.make_node("Reshape", [gemm.input[0], "shape"], ["wide"], name="wide"))
    gemm.input[0] = "wide"
    with pytest.raises(export.VerificationError, match="batch of 7"):
        check(model)


def test_real_inputs_are_compared_too(check, model, fn):
    """The function differs from the file only on pictures like the real ones."""

    def other(image):
        dark = jnp.max(image.astype(jnp.float32)) < 10
        return {name: value + jnp.where(dark, 1.0, 0.0) for name, value in fn(image).items()}

    check(model, fn=other)
    with pytest.raises(export.VerificationError, match="batch of 1 real inputs"):
        check(model, fn=other, samples={"image": np.zeros((2, 8, 8, 3), np.uint8)})
    # A batch of one takes the first of them.
    with pytest.raises(export.VerificationError, match="batch of 1 real inputs"):
        check(model, fn=other, samples={"image": np.stack([np.full((8, 8, 3), tone, np.uint8) for tone in (0, 200)])})


@pytest.mark.parametrize(("margin", "off"), [(1.5, 0.8), (0.7, 0.4)])
def test_another_top_class_within_the_tolerance_of_values(check, margin, off):
    """The logits are so large that the tolerance is 1, which hides a small difference but no other clear top class."""

    def close(image):
        tall = jnp.ones_like(image[:, 0, 0, 0], jnp.float32)[:, None]
        return tall * np.array([[1e4, 1e4 - margin, -1e4]], np.float32)

    proto = export.to_onnx(lambda image: close(image) - np.array([[off, -off, 0]], np.float32), INPUTS)
    if margin < 1:
        check(proto, fn=close)
    else:
        with pytest.raises(export.VerificationError, match="another top class in 1 of 1 rows"):
            check(proto, fn=close)
