"""python -m export: a run's folder becomes a file that keeps its contract, or no file at all."""

import dataclasses
import json
import re
from functools import partial

import jax
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from runs import CALIBRATION, CLASSES, dataset_of, evaluate_run, make_run, metadata_of
from scipy.special import softmax

import export
import export.workdir
import jaxcnn
from jaxcnn import config as settings
from jaxcnn.calibration import write_calibration
from jaxcnn.classifier import load
from jaxcnn.config import DataConfig
from jaxcnn.data import Fingerprint
from jaxcnn.errors import UserError
from jaxcnn.evaluation import measure
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.lineage import trainings
from jaxcnn.run.workdir import Workdir
from jaxcnn.weights import read_weights


def test_the_file_is_in_the_workdir_without_temporary_files(run, file):
    assert file == run / "model.onnx"
    assert not [path for path in run.iterdir() if "tmp" in path.name or path.name.startswith(".export")]
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "README.md", "config.json", "example.npz", "preprocessor_config.json",
    ]  # fmt: skip


def test_the_file_keeps_the_contract(file):
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 8, 8, 3])
    outputs = [(output.name, output.type, output.shape) for output in session.get_outputs()]
    assert outputs == [(name, "tensor(float)", ["batch", 3]) for name in ("logits", "probabilities")]
    model = onnx.load(file)
    assert (model.ir_version, [(opset.domain, opset.version) for opset in model.opset_import]) == (8, [("", 17)])


def test_the_file_says_what_it_is(run, file):
    found = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    values = {key: json.loads(value) for key, value in found.items()}
    date, description, version = values.pop("date"), values.pop("description"), values.pop("version")
    assert re.fullmatch(r"[0-9a-f]{64}", values.pop("checksum"))
    assert values == {
        "names": ["cat", "dög", "eel"],
        "wnids": ["n01", "n02", "n03"],
        "image_size": [8, 8],
        "resize": {"mode": "stretch", "filter": "bicubic"},
        "dataset": "pets",
        "metrics": {"top1": 0.5, "loss": 1.25},
        "step": 7,
        "config": json.loads(
            settings.to_json(Workdir(run).read_config()).replace("/home/me/cache", DataConfig().cache_dir)
        ),
        "license": "CC-BY-4.0",
        "trainings": [dataclasses.asdict(training) for training in trainings(Workdir(run), load_model(run))],
        "author": "jaxcnn",
    }
    assert date[:2] == "20"
    assert "pets" in description
    assert version == jaxcnn.__version__


def test_the_file_records_how_the_pictures_were_split(tmp_path):
    run = make_run(tmp_path / "run")
    pictures = Fingerprint(train=7, validation=3, labels="ab", pixels="cd", side=8)
    Workdir(run).record_pictures(pictures)
    assert load(export.export_workdir(run)).pictures == pictures
    weights = export.workdir.export_weights(run, tmp_path / "a.safetensors")
    assert read_weights(str(weights)).pictures == pictures


def test_the_file_computes_what_the_run_does(run, file):
    trained = load_model(run)
    images = np.random.default_rng(5).integers(0, 256, (4, 8, 8, 3), np.uint8)
    logits, probabilities = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": images})
    expected = jax.jit(partial(trained.model.apply, train=False))(trained.variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_run_in_bfloat16_is_exported_in_float32(tmp_path):
    path = export.export_workdir(make_run(tmp_path / "run", precision="bfloat16"), tmp_path / "other.onnx")
    kinds = {initializer.data_type for initializer in onnx.load(path).graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def spoil(monkeypatch):
    def spoiled(*arguments):
        model = export.to_onnx(*arguments)
        bias = next(
            initializer for initializer in model.graph.initializer if initializer.name.endswith("classifier/bias")
        )
        bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 0.1).tobytes()
        return model

    monkeypatch.setattr(export.workdir, "to_onnx", spoiled)


def test_a_file_that_fails_its_verification_never_appears(run, tmp_path, monkeypatch):
    spoil(monkeypatch)
    with pytest.raises(export.VerificationError, match=r"logits of a batch of 1 random inputs .* differs by 0.1"):
        export.export_workdir(run, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_its_verification_leaves_the_older_one(run, tmp_path, monkeypatch):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"older")
    spoil(monkeypatch)
    with pytest.raises(export.VerificationError):
        export.export_workdir(run, target)
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]


def test_an_older_file_is_replaced(run, tmp_path):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"older")
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    assert onnx.load(export.export_workdir(run, target, pictures=pictures)).graph.node


def test_a_path_that_cannot_be_written_is_a_user_error(run, tmp_path):
    with pytest.raises(UserError, match=r"missing/model.onnx cannot be written: No such file.*-o"):
        export.export_workdir(run, tmp_path / "missing" / "model.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        export.export_workdir(run, tmp_path / "folder.onnx")
    with pytest.raises(UserError, match=r"does not end with \.onnx"):
        export.export_workdir(run, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize("text", ["[", "3", '[{"dataset": "pets"}]'])
def test_a_damaged_record_of_earlier_trainings_is_named(tmp_path, text):
    run = make_run(tmp_path / "run")
    Workdir(run).earlier_trainings.write_text(text)
    with pytest.raises(UserError, match=r"earlier_trainings.json is damaged \(.+\); train in a new workdir"):
        export.export_workdir(run)
    assert not (run / "model.onnx").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"step": 6},
        {"temperature": 2.0},
        {"step": None},
        {"split": "all"},
        {"split": "train"},
        {"dataset": "other pets"},
        {"count": 4},
    ],
)
def test_an_evaluation_of_another_checkpoint_or_other_pictures_is_not_used(run, tmp_path, change):
    workdir, trained = Workdir(tmp_path), load_model(run)
    workdir.record_pictures(Fingerprint(train=7, validation=3, labels="ab", pixels="cd", side=8))
    about = {"step": trained.step, "temperature": trained.temperature, "dataset": "pets", "split": "validation"}
    record = about | {"count": 3, "top1": 0.75}
    workdir.evaluation.write_text(json.dumps(record))
    assert export.workdir._read_evaluation(workdir, trained) == record
    workdir.evaluation.write_text(json.dumps(record | change))
    assert export.workdir._read_evaluation(workdir, trained) is None


@pytest.mark.run
def test_the_temperature_is_folded_into_the_weights(file, tmp_path):
    run = make_run(tmp_path / "run")
    plain = onnx.load(file)
    write_calibration(CALIBRATION, run / "calibration.json")
    found = evaluate_run(run)
    path = export.export_workdir(run)
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in plain.graph.node]
    trained = load_model(run)
    images = np.random.default_rng(5).integers(0, 256, (4, 8, 8, 3), np.uint8)
    logits, probabilities = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})
    expected = jax.jit(partial(trained.model.apply, train=False))(trained.variables, images) / 1.625
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities, softmax(logits, axis=1), rtol=1e-5)
    facts = metadata_of(path)
    assert facts["calibration"] == dataclasses.asdict(CALIBRATION)
    assert facts["metrics"] == {key: found[key] for key in ("loss", "top1", "top5", "ece")}
    card = (run / "model" / "README.md").read_text()
    assert "the last layer's weights are divided by 1.62." in card
    assert "Without it, the calibration error would be 0.3750." in card
    assert "it is 0.1875; the file's temperature" in card
    opened = load(path)
    assert (opened.temperature, opened.step) == (1.625, 7)
    again = measure(opened.logits, dataset_of(run).validation, classes=3, batch_size=32)
    assert again.scalars() == pytest.approx({key: found[key] for key in again.scalars()}, abs=1e-5)


def test_names_that_are_not_utf8_are_replaced(run, tmp_path):
    record = Workdir(run).read_config()
    odd = dataclasses.replace(record.data, source="/home/me/ph\udcf6tos")
    Workdir(tmp_path / "run").record(dataclasses.replace(record, data=odd, init_from="caf\udce9"), CLASSES)
    (tmp_path / "run" / "checkpoints").symlink_to(run / "checkpoints")
    found = metadata_of(export.export_workdir(tmp_path / "run"))["config"]
    assert (found["data"]["source"], found["init_from"]) == ("/home/me/ph\N{REPLACEMENT CHARACTER}tos", "caf\ufffd")
    export.workdir.export_weights(tmp_path / "run", tmp_path / "a.safetensors")


def test_public_names():
    assert sorted(export.__all__) == ["UnsupportedError", "VerificationError", "export_workdir", "to_onnx"]
    assert all(hasattr(export, name) for name in export.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        export.no_such_name  # noqa: B018
