"""Quantization to 8-bit integers: the contract is kept, figures are recorded, and accuracy is bounded."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from runs import CALIBRATION, CLASSES, dataset_of, evaluate_run, make_run, metadata_of

import export
import export.quantize
import export.workdir
from export import __main__ as program
from export.workdir import Quantization, Source
from jaxcnn.calibration import write_calibration
from jaxcnn.classifier import load
from jaxcnn.data import Fingerprint, Resize
from jaxcnn.errors import UserError
from jaxcnn.evaluation import measure
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.workdir import Workdir
from jaxcnn.run_metadata import describe_run


def test_a_quantized_file_keeps_the_contract_and_has_its_figures(tmp_path):
    run = make_run(tmp_path / "run")
    path = export.export_workdir(run, quantization=Quantization(dataset=dataset_of(run), tolerance=0.5))
    assert path == run / "model.int8.onnx"
    model = onnx.load(path)
    assert (model.ir_version, [(opset.domain, opset.version) for opset in model.opset_import]) == (8, [("", 17)])
    assert not model.graph.value_info
    weights = {initializer.data_type for initializer in model.graph.initializer}
    assert onnx.TensorProto.INT8 in weights
    figures = metadata_of(path)["quantization"]
    assert figures["top1_float32"] == 1
    assert 0.5 <= figures["top1_int8"] <= 1
    assert figures["rate_int8"] > 0
    card = (path.with_suffix("") / "README.md").read_text()
    assert "## Quantization to int8" in card
    assert f"| top-1 accuracy | 1.0000 | {figures['top1_int8']:.4f} |" in card
    assert f"| calibration error | {figures['ece_float32']:.4f} | {figures['ece_int8']:.4f} |" in card
    assert f"{{type: ece, value: {figures['ece_int8']:.6g}}}" in card
    said = metadata_of(path)["metrics"]
    assert said == {key: figures[f"{key}_int8"] for key in said}
    assert f"| top-1 accuracy | {said['top1']:.4f} |" in card.split("## Quantization to int8")[0]
    found = measure(load(path).logits, dataset_of(run).validation, classes=3, batch_size=32)
    for name, top1 in zip(CLASSES.names, found.per_class, strict=True):
        assert f"| {name} | {top1:.4f} | " in card
    assert "- Before quantization: onnxruntime computes what JAX does" in card
    assert "- Quantized, it is valid ONNX, and top-1 falls by at most 0.5." in card


@pytest.mark.parametrize("name", ["pets", "street pets"])
def test_accuracy_on_other_pictures_is_not_said_to_be_that_of_the_run(tmp_path, name):
    run = make_run(tmp_path / "run", flip=True)
    Workdir(run).record_pictures(dataset_of(run).fingerprint())
    evaluate_run(run)
    others = dataclasses.replace(dataset_of(run, validation=100), name=name)
    path = export.export_workdir(run, quantization=Quantization(dataset=others, tolerance=1))
    found = metadata_of(path)
    assert (found["metrics"], found["quantization"]["dataset"], found["quantization"]["pictures"]) == ({}, name, 100)
    card = (path.with_suffix("") / "README.md").read_text()
    said = "Its accuracy was measured on other pictures than the validation pictures of pets, see below."
    assert f"## Evaluation\n\n{said}\n\n## " in card
    assert f"ranges come from 64 training pictures of {name}. " in card
    assert f"Accuracy was measured on 100 validation pictures of {name}, speed" in card
    for absent in ("model-index", "selected by its accuracy", "from worst to best", "accuracy differs between classes"):
        assert absent not in card


@pytest.mark.run
def test_accuracy_on_the_pictures_of_the_run_is_that_of_the_file(tmp_path):
    run = make_run(tmp_path / "run")
    dataset = dataset_of(run)
    Workdir(run).record_pictures(dataset.fingerprint())
    path = export.export_workdir(run, quantization=Quantization(dataset=dataset, tolerance=1))
    found = metadata_of(path)
    assert found["metrics"]["top1"] == found["quantization"]["top1_int8"]
    assert "dataset" not in found["quantization"]
    assert "model-index" in (path.with_suffix("") / "README.md").read_text()


@pytest.mark.run
def test_a_quantized_file_stays_calibrated(tmp_path):
    run = make_run(tmp_path / "run")
    write_calibration(CALIBRATION, run / "calibration.json")
    dataset = dataset_of(run)
    path = export.export_workdir(run, quantization=Quantization(dataset=dataset, tolerance=0.5))
    figures, opened = metadata_of(path)["quantization"], load(path)
    assert opened.temperature == 1.625
    assert "This calibration was measured before quantization." in (path.with_suffix("") / "README.md").read_text()
    evaluation = measure(opened.logits, dataset.validation, classes=3, batch_size=32)
    assert evaluation.scalars() == pytest.approx({key: figures[f"{key}_int8"] for key in evaluation.scalars()})
    exact = load(run).logits(dataset.validation.images)
    found = opened.logits(dataset.validation.images)
    assert np.vdot(found, exact) / np.vdot(exact, exact) == pytest.approx(1, abs=0.1)  # not 1.625


@pytest.mark.run
def test_no_sum_of_two_products_overflows_16_bits(tmp_path):
    run = make_run(tmp_path / "run")
    path = export.export_workdir(run, quantization=Quantization(dataset=dataset_of(run, validation=20), tolerance=1))
    initializers = onnx.load(path).graph.initializer
    kernels = [
        onnx.numpy_helper.to_array(initializer)
        for initializer in initializers
        if initializer.data_type == onnx.TensorProto.INT8
    ]
    largest = max(np.abs(kernel.astype(int)).max() for kernel in kernels)
    assert 2 * 255 * 32 < 2 * 255 * largest < 2**15


def test_the_first_layer_the_last_one_and_the_softmax_stay_in_float(tmp_path):
    run = make_run(tmp_path / "run")
    path = export.export_workdir(
        run, heatmap=True, quantization=Quantization(dataset=dataset_of(run, validation=20), tolerance=1)
    )
    nodes = onnx.load(path).graph.node
    producers = {name: node for node in nodes for name in node.output}
    rounded = [producers[node.input[0]].op_type for node in nodes if node.op_type == "QuantizeLinear"]
    assert (rounded[0], {"Cast", "Transpose"} & set(rounded)) == ("Relu", set())
    first = next(node for node in nodes if node.op_type == "Conv")
    assert "DequantizeLinear" not in {producers[name].op_type for name in first.input if name in producers}
    gemm = next(node for node in nodes if node.op_type == "Gemm" and "heatmap" not in node.name)
    assert producers.get(gemm.input[1]) is None
    softmax = next(node for node in nodes if node.op_type == "Softmax")
    assert producers[softmax.input[0]].op_type == "Gemm"


def test_relu6_costs_nothing_and_depthwise_weights_have_8_bits(tmp_path):
    random = np.random.default_rng(0)
    shapes = [(3, 3, 3, 8), (3, 3, 1, 8), (1, 1, 8, 8)]
    kernels = [random.normal(size=shape).astype(np.float32) / 9 for shape in shapes]

    def classify(image):
        x = image.astype(jnp.float32) / 64
        for kernel in kernels:
            groups, layouts = x.shape[-1] // kernel.shape[2], ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=layouts, feature_group_count=groups
            )
            x = jax.nn.relu6(3 * x)
        return {"logits": x.mean((1, 2)) @ np.eye(8, dtype=np.float32)}

    paths = [tmp_path / "float.onnx", tmp_path / "int8.onnx"]
    onnx.save(export.to_onnx(classify, {"image": ("uint8", ("batch", 8, 8, 3))}), paths[0])
    images = random.integers(0, 256, (40, 8, 8, 3), np.uint8)
    export.quantize.quantize(*paths, images)
    model = onnx.load(paths[1])
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in model.graph.initializer}
    # The first one is in float, as its layer is; the others are the range of what their layers compute.
    assert [node.op_type for node in model.graph.node].count("Clip") == 1
    ranges = [255 * float(arrays[node.input[1]]) for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert ranges[:3] == pytest.approx([6, 6, 6], rel=0.2)
    depthwise, pointwise = (
        next(np.abs(array.astype(int)) for array in arrays.values() if array.dtype == np.int8 and array.shape == shape)
        for shape in ((8, 1, 3, 3), (8, 8, 1, 1))
    )
    assert (depthwise.max(), pointwise.max()) == (127, 64)
    exact, rounded = (export.sidecars.open_model(path)(images)["logits"] for path in paths)
    assert np.abs(rounded - exact).max() < 0.05


@pytest.mark.parametrize(("method", "side"), [("linear", 12), ("linear", 5), ("cubic", 12)])
def test_resizing_the_picture_stays_in_float(method, side):
    kernel = np.ones((3, 3, 3, 2), np.float32)

    def classify(image):
        x = jax.image.resize(image.astype(jnp.float32), (image.shape[0], side, side, 3), method) / 64 - 2
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return {"logits": x.mean((1, 2)) @ np.eye(2, dtype=np.float32)}

    model = export.to_onnx(classify, {"image": ("uint8", ("batch", 8, 8, 3))})
    kept = export.quantize.kept_in_float(model)
    assert [node.name for node in model.graph.node if node.name not in kept] == ["GlobalAveragePool", "Flatten"]


@pytest.mark.parametrize(("count", "used"), [(40, 40), (512, 512), (2000, 512)])
def test_the_pictures_that_ranges_are_measured_on_are_spread_over_all(count, used):
    reader = export.quantize._Pictures(np.arange(count))
    rows = np.concatenate([batch["image"] for batch in iter(reader.get_next, None)])
    assert (len(rows), rows[0], rows[-1]) == (used, 0, count - 1)
    assert set(np.diff(rows)) <= {(count - 1) // (used - 1), (count - 1) // (used - 1) + 1}


def test_a_speed_is_the_best_of_the_rounds(monkeypatch):
    delays = itertools.cycle(range(5))  # of the four measured in each round
    seconds = {("fast", 1): 0.5, ("fast", 64): 4.0, ("slow", 1): 1.0, ("slow", 64): 8.0}
    monkeypatch.setattr(export.quantize, "_open", lambda path: path)
    monkeypatch.setattr(export.quantize, "_time", lambda name, images, _: seconds[name, len(images)] + next(delays))
    fast, slow = export.quantize.compare_speed(["fast", "slow"], 8)
    assert (fast.latency, fast.throughput, slow.latency, slow.throughput) == (500, 16, 1000, 8)


def test_a_file_is_not_quantized_with_pictures_of_other_classes(tmp_path):
    run = make_run(tmp_path / "run")
    dataset = dataclasses.replace(dataset_of(run), names=("cat", "dog", "eel"))
    with pytest.raises(UserError, match="the pictures of pets are not the model's"):
        export.export_workdir(run, quantization=Quantization(dataset=dataset))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.fit pad", "data.fit is pad, but the model takes stretch; give stretch or leave it out"),
        ("--data.fit crop --data.crop .5", "data.fit is crop, but the model takes stretch"),
        ("--data.source pictures --data.filter bilinear", "data.filter is bilinear, but the model takes bicubic"),
        ("--data.image_size 16", "data.image_size is 16, but the model takes 8"),
    ],
)
def test_a_file_is_not_quantized_with_pictures_prepared_otherwise(run, options, message):
    with pytest.raises(UserError, match=message):
        program.main([str(run), "--quantize", "int8", *options.split()])
    padded = dataclasses.replace(dataset_of(run), resize=Resize(mode="pad"))
    with pytest.raises(UserError, match=r"the pictures of pets were prepared with Resize\(mode='pad'.* takes Resize"):
        export.export_workdir(run, quantization=Quantization(dataset=padded))


def test_a_run_whose_pictures_changed_is_not_quantized_with_them(tmp_path):
    run = make_run(tmp_path / "run")
    Workdir(run).record_pictures(Fingerprint(train=9, validation=1, labels="", pixels="", side=8))
    arguments = [str(run), "--quantize", "int8", "--data.cache_dir", str(tmp_path / "cache")]
    with pytest.raises(UserError, match="the pictures of digits have changed since the model was trained"):
        program.main(arguments)
    assert not list(run.glob("*int8*"))


def test_a_quantized_file_that_is_too_inaccurate_never_appears(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    dataset = dataset_of(run)
    right = export.quantize.quantize

    def spoiled(source, target, pictures):
        right(source, target, pictures)
        model = onnx.load(target)
        bias = next(
            initializer for initializer in model.graph.initializer if initializer.name.endswith("classifier/bias")
        )
        bias.raw_data = np.array([100, 0, 0], np.float32).tobytes()
        onnx.save(model, target)

    monkeypatch.setattr(export.quantize, "quantize", spoiled)
    with pytest.raises(export.VerificationError, match=r"falls from 1.0000 to 0\.\d+, by more than the 0.01"):
        export.export_workdir(run, quantization=Quantization(dataset=dataset))
    assert not list(run.glob("*int8*"))
    assert not list(run.glob(".export*"))


@pytest.mark.parametrize(("fell", "tolerance"), [(1, 0.01), (7, 0.07), (29, 0.29), (0, 0.0)])
def test_accuracy_may_fall_by_exactly_the_tolerance(run, file, tmp_path, monkeypatch, fell, tolerance):
    dataset, trained = dataset_of(run, validation=100), load_model(run)
    measured = export.workdir._evaluate(file, dataset, trained)
    path = Path(shutil.copy(file, tmp_path / "m.onnx"))

    source = Source(trained=trained, metadata=describe_run(Workdir(run), trained))

    def quantize_to(right):
        falls = iter([dataclasses.replace(measured, top1=percent / 100) for percent in (95, right)])
        monkeypatch.setattr(export.workdir, "_evaluate", lambda *_: next(falls))
        return export.workdir._quantize(path, source, Quantization(dataset=dataset, tolerance=tolerance))

    assert quantize_to(95 - fell).figures["top1_int8"] == (95 - fell) / 100
    with pytest.raises(export.VerificationError, match=f"falls from 0.9500 to 0.{94 - fell}00, by more than the "):
        quantize_to(94 - fell)
