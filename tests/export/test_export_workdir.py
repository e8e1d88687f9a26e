"""python -m export: a run's folder becomes a file that keeps its contract, or no file at all."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors
import safetensors.numpy
from scipy.special import softmax

import export
import export.quantize
import export.sidecars
import export.workdir
import jaxcnn
from export import __main__ as program
from export.card import _classes, _plain
from export.explain import explain
from export.workdir import Quantization
from jaxcnn import cli, models
from jaxcnn import config as settings
from jaxcnn.calibration import Calibration, write_calibration
from jaxcnn.classifier import load
from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig
from jaxcnn.data import Dataset, Fingerprint, Split
from jaxcnn.errors import UserError
from jaxcnn.evaluation import measure, with_mirror_image
from jaxcnn.evaluation_record import describe_measured, write_evaluation
from jaxcnn.metadata import describe_run
from jaxcnn.optim import make_optimizer
from jaxcnn.run.checkpoint import load_model, open_checkpoints
from jaxcnn.run.lineage import Training, record_earlier, trainings
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import create_state
from jaxcnn.weights import read_weights

ROOT = Path(__file__).parents[2]
CLASSES = Classes(("cat", "dög", "eel"), ("n01", "n02", "n03"), "pets", "CC-BY-4.0")


def make_run(path, *, flip=False, **model):
    config = Config(
        data=DataConfig(image_size=8, cache_dir="/home/me/cache"),
        model=ModelConfig(widths=(4, 6), blocks=(1, 0), **model),
        augment=AugmentConfig(flip=flip),
    )
    Workdir(path).record(config, CLASSES)
    state = create_state(
        jax.random.key(0),
        model=models.build(config.model, classes=3),
        optimizer=make_optimizer(config.optim, steps=10),
        image_size=8,
        averaged=False,
    )
    random = np.random.default_rng(0)
    noise = jax.tree.map(lambda leaf: leaf + random.normal(0, 0.2, leaf.shape).astype(np.float32), state.variables)
    with open_checkpoints(path / "checkpoints") as checkpoints:
        checkpoints.save(state._replace(step=state.step + 7, variables=noise), metrics={"top1": 0.5, "loss": 1.25})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def file(run):
    return export.export_workdir(run)


@pytest.fixture(scope="module")
def explained(run, tmp_path_factory):
    """The same run with what explains it."""
    path = tmp_path_factory.mktemp("explained") / "more.onnx"
    return export.export_workdir(run, path, features=True, heatmap=True)


PICTURES = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A run that was exported with real pictures."""
    run = make_run(tmp_path_factory.mktemp("pictured"))
    export.export_workdir(run, pictures=PICTURES)
    return run


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
    expected = trained.model.apply(trained.variables, jnp.asarray(images), train=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_run_in_bfloat16_is_exported_in_float32(tmp_path):
    path = export.export_workdir(make_run(tmp_path / "run", precision="bfloat16"), tmp_path / "other.onnx")
    kinds = {initializer.data_type for initializer in onnx.load(path).graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def find_bias(model):
    """The bias of the last layer."""
    return next(weights for weights in model.graph.initializer if weights.name.endswith("classifier/bias"))


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


def test_the_description_beside_the_file_has_its_metadata(file):
    described = json.loads(file.with_suffix(".json").read_text())
    content = file.read_bytes()
    assert (described["bytes"], described["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert described["inputs"] == [{"name": "image", "type": "uint8", "shape": ["batch", 8, 8, 3]}]
    assert [output["name"] for output in described["outputs"]] == ["logits", "probabilities"]
    hidden = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in hidden.items()}.items() <= described.items()


def test_what_hugging_face_reads(file):
    config = json.loads((file.with_suffix("") / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dög", "2": "eel"}
    assert config["label2id"]["eel"] == 2
    processor = json.loads((file.with_suffix("") / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 8, "width": 8}
    assert not processor["do_rescale"]
    assert not processor["do_normalize"]


def test_the_example_holds_what_the_file_says(file):
    with np.load(file.with_suffix("") / "example.npz") as example:
        arrays = dict(example)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": arrays.pop("image")})
    assert sorted(arrays) == ["logits", "probabilities"]
    np.testing.assert_allclose(arrays["logits"], logits, rtol=1e-5)
    np.testing.assert_allclose(arrays["probabilities"], probabilities, rtol=1e-5)


def test_the_example_of_real_pictures_is_kept_for_the_next_export(pictured):
    export.export_workdir(pictured)
    with np.load(pictured / "model" / "example.npz") as example:
        np.testing.assert_array_equal(example["image"], PICTURES)
    assert "5 real ones" in (pictured / "model" / "README.md").read_text()


def test_real_pictures_stay_in_the_run_folder(pictured, tmp_path):
    file = export.export_workdir(pictured, tmp_path / "given.onnx")
    with np.load(tmp_path / "given" / "example.npz") as example:
        assert not np.array_equal(example["image"][:4], PICTURES[:4])
    assert json.loads(file.with_suffix(".json").read_text())["example_pictures"] == "noise"
    assert "5 real ones" in (tmp_path / "given" / "README.md").read_text()


def test_the_card_counts_the_real_pictures_that_were_compared(run, tmp_path):
    assert "and 7 real ones:" in card_of(run, output=tmp_path / "m.onnx", pictures=np.concatenate([PICTURES] * 2))


def test_an_example_that_cannot_be_written_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def cut_short(file, **arrays):
        write(file, **arrays)
        raise OSError("No space left on device")

    write = np.savez_compressed
    monkeypatch.setattr(np, "savez_compressed", cut_short)
    with pytest.raises(UserError, match="No space left"):
        export.export_workdir(run, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_with_the_last_file_leaves_all_as_it_was(pictured, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(pictured, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    synced = []

    def fill_up(descriptor):
        synced.append(descriptor)
        if len(synced) == 6:  # the model, and five files beside it
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fill_up)
    with pytest.raises(UserError, match=r"model.onnx cannot be written: No space left on device; give another path"):
        export.export_workdir(run, features=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_model_is_replaced_last(run, tmp_path, monkeypatch):
    path = export.export_workdir(run, tmp_path / "m.onnx")
    older, moved, move = path.read_bytes(), [], os.replace

    def refuse_the_model(source, target):
        if target == path:
            raise PermissionError(13, "Permission denied")
        move(source, target)
        if Path(target).is_relative_to(tmp_path / "m") or target == tmp_path / "m.json":
            moved.append(Path(target).name)

    monkeypatch.setattr("os.replace", refuse_the_model)
    with pytest.raises(UserError, match=r"m.onnx cannot be written: Permission denied"):
        export.export_workdir(run, path, features=True)
    assert path.read_bytes() == older
    assert (moved[0], moved[-1], len(moved)) == ("config.json", "m.json", 5)


def test_folders_of_killed_exports_are_removed_after_a_day(run, tmp_path):
    target = tmp_path / "m[1].onnx"
    names = (".export-m[1].onnx-killed", ".export-m[1].onnx-running", ".export-settings", ".export-m1.onnx-other")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.onnx").write_bytes(b"half")
        if not name.endswith("running"):
            os.utime(tmp_path / name, (time.time() - 25 * 3600,) * 2)
    begun = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.workdir, "verify", lambda path, *_, **__: begun.append(path.parent.name) or 0.0)
        export.export_workdir(run, target)
    assert begun[0].startswith(".export-m[1].onnx-")
    assert {path.name for path in tmp_path.glob(".*")} == set(names[1:])


def test_an_example_of_noise_is_not_used_as_real_pictures(run, file):
    card = file.with_suffix("") / "README.md"
    assert "on random pictures:" in card.read_text()
    export.export_workdir(run)
    assert "on random pictures:" in card.read_text()


def test_a_damaged_example_is_ignored(pictured, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pictured, run)
    (run / "model" / "example.npz").write_bytes(b"PK\x03\x04 cut short")
    assert export.export_workdir(run).exists()


CALIBRATION = Calibration(step=7, temperature=1.625, count=200, ece_before=0.375, ece_after=0.1875)


def evaluate_run(run, *, flip=False):
    """Writes the run's evaluation as training does at its end, and returns the record."""
    classifier, dataset = load(run), dataset_of(run)
    evaluation = measure(classifier.logits, dataset.validation, classes=3, batch_size=32)
    averaged = with_mirror_image(classifier.logits)
    flipped = measure(averaged, dataset.validation, classes=3, batch_size=32) if flip else None
    about = describe_measured(classifier, dataset=dataset, split="validation")
    path = run / "evaluation.json"
    write_evaluation(evaluation, path, names=CLASSES.names, about=about, flipped=flipped)
    return json.loads(path.read_text())


def card_of(run, **options):
    return (export.export_workdir(run, **options).with_suffix("") / "README.md").read_text()


def metadata_of(path):
    return {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}


def test_the_card_has_the_figures_of_the_run(tmp_path):
    run = make_run(tmp_path / "run", precision="auto")
    record = run / "environment.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"precision": "bfloat16"}))
    (run / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 10, "epoch": 1.0, "time": 0.0, "loss": 1.0, "top1": 0.5, "learning_rate": 0.1, '
        '"resolution": 8, "images_per_second": 16.0}\n'
        '{"kind": "validation", "step": 10, "epoch": 1.0, "time": 1.0, "loss": 1.0, "top1": 0.5, "top5": 1.0, '
        '"ece": 0.1}\n'
    )
    found = evaluate_run(run)
    card = card_of(run)
    front = card.split("---")[1]
    assert "pipeline_tag: image-classification" in front
    assert "license: other" in front
    assert f"{{type: loss, value: {found['loss']:.6g}}}" in front
    for expected in (
        "200 validation pictures",
        f"| top-1 accuracy | {found['top1']:.4f} |",
        f"| cross-entropy | {found['loss']:.4f} |",
        f"| calibration error | {found['ece']:.4f} |",
        f"The standard error of the top-1 accuracy is {np.sqrt(found['top1'] * (1 - found['top1']) / 200):.4f}.",
        "cat, dög, eel",
        "CC-BY-4.0",
        "| this checkpoint | after 7 steps |",
        "| network | resnet, stages of 4 and 6 channels",
        "| schedule | 30 epochs of 10 steps, batch size 64, 8x8 pixels, seed 0",
        "floating-point operations: 640 pictures of 8x8 pixels",
        "| time | 40 s in training steps",
        "| precision | bfloat16 |",
        "It knows these 3 classes and no others.",
        "It sees 8x8 pixels.",
        "It was trained only on pets.",
        "--data.source FOLDER --split all",
    ):
        assert expected in card
    assert "largest difference is" in card
    for absent in ("top-5", "mirror", "calibrated", "{"):
        assert absent not in card.split("---", 2)[2].split("## Usage")[0]
    assert "left from right" not in card


EARLIER = (
    Training("pets | photos", "ask <us>", {"schedule": "9 epochs", "time": "8 h"}),
    Training("birds", "", {"schedule": "2 epochs", "arithmetic": "3e9 floating point operations"}),
)


def test_the_card_lists_earlier_trainings(tmp_path):
    run = make_run(tmp_path / "run")
    record_earlier(EARLIER, Workdir(run).earlier_trainings)
    card = card_of(run)
    assert "It was trained only on pets \\| photos and birds and pets. Image collections" in card
    section = card.split("## Training\n\n")[1].split("\n\n## ")[0]
    start, own_name, own, *earlier = re.split(r"\n*### (.+)\n\n", section)
    assert (start, own_name) == ("", "Training 3, on pets")
    assert "| schedule | 30 epochs" in own
    assert earlier == [
        "Training 2, on birds",
        "|  |  |\n| --- | --- |\n| schedule | 2 epochs |\n| arithmetic | 3e9 floating point operations |",
        "Training 1, on pets \\| photos",
        "|  |  |\n| --- | --- |\n| schedule | 9 epochs |\n| time | 8 h |",
    ]
    terms = card.split("## Terms of use\n\n")[1].split("\n")[0]
    assert terms == (
        "The weights were trained on pets (CC-BY-4.0), and before that on birds (terms not recorded), and before that "
        "on pets \\| photos (ask &lt;us>). Use them only as the terms of the pictures allow."
    )


@pytest.mark.parametrize("text", ["[", "3", '[{"dataset": "pets"}]'])
def test_a_damaged_record_of_earlier_trainings_is_named(tmp_path, text):
    run = make_run(tmp_path / "run")
    Workdir(run).earlier_trainings.write_text(text)
    with pytest.raises(UserError, match=r"earlier_trainings.json is damaged \(.+\); train in a new workdir"):
        export.export_workdir(run)
    assert not (run / "model.onnx").exists()


def test_data_of_two_trainings_is_listed_once(tmp_path):
    run = make_run(tmp_path / "run")
    record_earlier([Training("pets", "CC-BY-4.0", {})], Workdir(run).earlier_trainings)
    card = card_of(run)
    assert "The weights were trained on pets (CC-BY-4.0). Use them" in card
    assert "It was trained only on pets. Image collections" in card


def test_the_card_of_an_unfinished_run_has_the_figures_of_the_checkpoint(file):
    card = (file.with_suffix("") / "README.md").read_text()
    assert "| top-1 accuracy | 0.5000 |" in card
    assert "model-index" not in card
    assert "| time |" not in card
    assert "## Classes\n\ncat, dög, eel" in card
    assert "from worst to best" not in card


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


def test_the_card_of_a_model_trained_with_mirror_images(tmp_path):
    run = make_run(tmp_path / "run", flip=True)
    found = evaluate_run(run, flip=True)
    flipped = found["with_flip"]
    assert flipped["loss"] != found["loss"]
    card = card_of(run)
    assert f"| cross-entropy | {found['loss']:.4f} | {flipped['loss']:.4f} |" in card
    assert "it cannot tell left from right" in card
    assert "| augmentation | horizontal flips |" in card


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
    expected = trained.model.apply(trained.variables, jnp.asarray(images), train=False) / 1.625
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


def test_a_heatmap_is_the_same_when_calibrated(explained, tmp_path):
    run = make_run(tmp_path / "run")
    write_calibration(CALIBRATION, run / "calibration.json")
    path = export.export_workdir(run, tmp_path / "more.onnx", features=True, heatmap=True)
    images = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), np.uint8)
    sessions = [ort.InferenceSession(model, providers=["CPUExecutionProvider"]) for model in (explained, path)]
    maps = [session.run(["heatmap"], {"image": images})[0] for session in sessions]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-5)
    nodes = [[node.op_type for node in onnx.load(file).graph.node] for file in (explained, path)]
    assert nodes[1] == nodes[0]


def test_class_names_cannot_break_the_card():
    assert _plain("a | b\n# <c>") == "a \\| b # &lt;c>"


def make_evaluation(names, right, confusions=()):
    """A record with these shares of a hundred pictures of each class."""
    confusion = np.diag([round(100 * share) for share in right])
    for i, j, times in confusions:
        confusion[i, j] = times
    per_class = [{"name": name, "count": 100, "top1": share} for name, share in zip(names, right, strict=True)]
    return {"per_class": per_class, "confusion": confusion.tolist()}


def test_many_classes_are_listed_from_both_ends():
    names = [f"c{i:02}" for i in range(30)]
    record = make_evaluation(names, [i / 100 for i in range(30)], [(0, i, 30 + i) for i in range(1, 13)])
    record["per_class"][3] |= {"count": 0, "top1": None}
    ranks, confusions = _classes(record).split("## Most frequent confusions")
    rows = [line.split(" | ") for line in ranks.splitlines() if line.startswith("| c")]
    assert [row[0].strip("| ") for row in rows] == [names[i] for i in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10)]
    assert [row[3] for row in rows] == names[:-11:-1]
    assert [row[1] for row in rows[:2]] == ["0.0000", "0.0100"]
    assert rows[0][4] == "0.2900"
    assert {row[2] for row in rows} == {row[5].strip("| ") for row in rows} == {"100"}
    listed = [line for line in confusions.splitlines() if line.startswith("| c0")]
    assert listed == [f"| c00 | c{i:02} | {30 + i} | 100 |" for i in range(12, 2, -1)]


def test_few_classes_are_all_listed():
    section = _classes(make_evaluation(["a", "b", "c"], [0.5, 0.25, 1]))
    assert [line for line in section.splitlines() if line.endswith("100 |")] == [
        "| b | 0.2500 | 100 |",
        "| a | 0.5000 | 100 |",
        "| c | 1.0000 | 100 |",
    ]
    assert "confusions" not in section


@pytest.mark.parametrize("model", [{}, {"preactivation": True, "stem": 1}, {"stem": 3}])
def test_features_and_heatmap_are_outputs_of_the_same_file(run, explained, tmp_path, model):
    path = explained
    if model:
        run = make_run(tmp_path / "run", **model)
        path = export.export_workdir(run, tmp_path / "more.onnx", features=True, heatmap=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {output.name: (output.type, output.shape[0]) for output in session.get_outputs()}
    assert kinds == dict.fromkeys(("features", "heatmap", "logits", "probabilities"), ("tensor(float)", "batch"))
    images = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), np.uint8)
    features, heatmap, logits = session.run(["features", "heatmap", "logits"], {"image": images})
    trained = load_model(run)
    classifier = jax.tree.map(np.asarray, trained.variables["params"]["classifier"])
    np.testing.assert_allclose(features @ classifier["kernel"] + classifier["bias"], logits, rtol=1e-3, atol=1e-4)
    assert heatmap.ndim == 3
    assert heatmap.min() >= 0
    assert heatmap.max() <= 1
    assert set(heatmap.max((1, 2)).round(5)) <= {0, 1}


def test_a_heatmap_is_the_class_activation_map(run, explained):
    """Of a pooled map and one linear layer: the map weighted by the top class's row."""
    images = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), np.uint8)
    session = ort.InferenceSession(explained, providers=["CPUExecutionProvider"])
    heatmap, logits = session.run(["heatmap", "logits"], {"image": images})
    trained = load_model(run)
    _, state = trained.model.apply(
        trained.variables, jnp.asarray(images), train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    feature_map = np.asarray(state["intermediates"]["stage_1"]["__call__"][0])
    rows = trained.variables["params"]["classifier"]["kernel"].T[logits.argmax(axis=1)]
    evidence = np.maximum(np.einsum("bhwc,bc->bhw", feature_map, rows), 0)
    largest = evidence.max((1, 2), keepdims=True)
    np.testing.assert_allclose(heatmap, evidence / np.where(largest == 0, 1, largest), atol=1e-3)


def test_a_network_without_a_feature_map_has_no_heatmap():
    image = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    with pytest.raises(export.UnsupportedError, match="no module of this network returns a feature map"):
        explain(lambda x: x.reshape(2, -1).astype(jnp.float32), image, features=True, heatmap=False)


def dataset_of(run, *, train=64, validation=200):
    """Pictures labelled as the model itself classifies them."""
    trained = load_model(run)
    random = np.random.default_rng(1)

    def split(count):
        images = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
        logits = trained.model.apply(trained.variables, jnp.asarray(images), train=False)
        return Split(images, np.asarray(logits).argmax(axis=1).astype(np.int32))

    return Dataset(
        name="pets",
        names=CLASSES.names,
        wnids=CLASSES.wnids,
        license="",
        train=split(train),
        validation=split(validation),
    )


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

    def quantize_to(right):
        falls = iter([dataclasses.replace(measured, top1=percent / 100) for percent in (95, right)])
        monkeypatch.setattr(export.workdir, "_evaluate", lambda *_: next(falls))
        return export.workdir._quantize(path, trained, Quantization(dataset=dataset, tolerance=tolerance))

    assert quantize_to(95 - fell)[1]["top1_int8"] == (95 - fell) / 100
    with pytest.raises(export.VerificationError, match=f"falls from 0.9500 to 0.{94 - fell}00, by more than the "):
        quantize_to(94 - fell)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "export", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_command_exports_to_the_given_path(run, tmp_path):
    done = command(run, "-o", tmp_path / "a.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'a.onnx'}: 0.0 MB, verified")


@pytest.mark.parametrize("arguments", [["no/such/run"], [], [".", "--quantise"]])
def test_command_reports_mistakes_in_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(program.main, program.PROG)
    written = capsys.readouterr()
    assert (stop.value.code, written.out) == (2, "")
    assert len(written.err.splitlines()) == 1
    assert written.err.startswith("python -m export: ")


def test_command_exports_weights_by_the_ending(run, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    program.main([str(run), "-o", str(path)])
    assert capsys.readouterr().out == f"{path}: 0.0 MB, to train from with --init_from {path}\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    weights, trained = read_weights(str(path)), load_model(run)
    assert (weights.names, weights.wnids, weights.model) == (CLASSES.names, CLASSES.wnids, trained.config.model)
    filled = weights.fill(trained.variables, with_head=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2**-11 * np.abs(b).max()),
                 filled, trained.variables)  # fmt: skip
    images = np.random.default_rng(5).integers(0, 256, (4, 8, 8, 3), np.uint8)
    logits = [
        trained.model.apply(variables, jnp.asarray(images), train=False) for variables in (filled, trained.variables)
    ]
    np.testing.assert_allclose(*logits, rtol=0, atol=2e-3 * np.abs(logits[1]).max())


def test_names_that_are_not_utf8_are_replaced(run, tmp_path):
    record = Workdir(run).read_config()
    odd = dataclasses.replace(record.data, source="/home/me/ph\udcf6tos")
    Workdir(tmp_path / "run").record(dataclasses.replace(record, data=odd, init_from="caf\udce9"), CLASSES)
    (tmp_path / "run" / "checkpoints").symlink_to(run / "checkpoints")
    found = metadata_of(export.export_workdir(tmp_path / "run"))["config"]
    assert (found["data"]["source"], found["init_from"]) == ("/home/me/ph\N{REPLACEMENT CHARACTER}tos", "caf\ufffd")
    export.workdir.export_weights(tmp_path / "run", tmp_path / "a.safetensors")


def test_the_weights_say_what_they_are(run, tmp_path):
    record = Workdir(run).read_config()
    Workdir(tmp_path / "run").record(dataclasses.replace(record, init_from="/home/me/other.safetensors"), CLASSES)
    (tmp_path / "run" / "checkpoints").symlink_to(run / "checkpoints")
    path = export.workdir.export_weights(tmp_path / "run", tmp_path / "a.safetensors")
    with safetensors.safe_open(path, framework="np") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    same = json.loads(json.dumps(describe_run(Workdir(run), load_model(run)).to_values()))
    assert same["step"] == 7
    same["config"]["init_from"] = "other.safetensors"
    same["config"]["model"] |= {"widths": [4, 6], "blocks": [1, 0]}
    same["config"]["resolutions"] = []
    same["trainings"][0]["recipe"]["schedule"] += ", initial weights from other.safetensors"
    assert metadata == same | {"date": metadata["date"]}
    assert "/home" not in json.dumps(metadata)
    assert (metadata["metrics"], metadata["license"]) == ({"top1": 0.5, "loss": 1.25}, "CC-BY-4.0")


def test_the_mean_with_other_weights(run, tmp_path):
    trained = load_model(run)
    other = export.workdir.export_weights(run, tmp_path / "a.safetensors")
    with safetensors.safe_open(other, framework="np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    with pytest.raises(UserError, match=r"a\.safetensors has weights of the same training as .*; leave it out"):
        program.main([str(run), "-o", str(tmp_path / "mean.safetensors"), "--average", str(other)])
    trainings = json.loads(metadata["trainings"])
    metadata["trainings"] = json.dumps([*trainings, trainings[0] | {"recipe": {"schedule": "another"}}])
    safetensors.numpy.save_file({name: 3 * values for name, values in tensors.items()}, other, metadata)
    program.main([str(run), "-o", str(tmp_path / "mean.safetensors"), "--average", str(other)])
    mean = read_weights(str(tmp_path / "mean.safetensors"))
    expected = jax.tree.map(lambda values: 2 * np.asarray(values), trained.variables)
    found = mean.fill(trained.variables, with_head=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), found, expected)
    assert [training.recipe.get("weights") for training in mean.trainings][-1] is not None
    with safetensors.safe_open(tmp_path / "mean.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["metrics"]) == {}
    with pytest.raises(UserError, match=r"--average is for weights; give a name that ends with .safetensors with -o"):
        program.main([str(run), "-o", str(tmp_path / "m.onnx"), "--average", str(other)])


@pytest.mark.parametrize(
    ("existing", "text"),
    [
        ("pets/README.md", "my notes"),
        ("pets/config.json", "[1]"),
        ("pets/cat/1.png", ""),
        ("pets/config.json", "{"),
        ("pets", ""),
        ("pets.json", '{"opse": 17}'),
    ],
)
def test_files_that_are_not_sidecars_are_never_replaced(run, tmp_path, existing, text):
    file = tmp_path / existing
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    there = sorted(tmp_path.rglob("*"))
    named = tmp_path / Path(existing).parts[0]
    with pytest.raises(
        UserError, match=f"{named} would be written with {tmp_path / 'pets.onnx'}, but is something else"
    ):
        export.export_workdir(run, tmp_path / "pets.onnx")
    assert sorted(tmp_path.rglob("*")) == there
    assert file.read_text() == text


@pytest.mark.parametrize("left", ["pets/.config.json.123.tmp", "pets/config.json", "pets.json"])
def test_files_of_an_interrupted_export_are_replaced(tmp_path, left):
    file = tmp_path / left
    file.parent.mkdir(exist_ok=True)
    file.touch()
    if left == "pets/config.json":
        (tmp_path / "pets" / "README.md").touch()
    assert export.sidecars.foreign_path(tmp_path / "pets.onnx") is None


def test_a_file_is_exported_again_after_an_interruption(run, tmp_path):
    (tmp_path / "pets").mkdir()
    path = export.export_workdir(run, tmp_path / "pets.onnx")
    (tmp_path / "pets" / "README.md").unlink()
    (tmp_path / "pets" / "NOTICE").write_text("mine")
    export.export_workdir(run, path)
    assert (tmp_path / "pets" / "README.md").exists()


def test_weights_that_cannot_be_written_leave_the_older_ones(run, tmp_path, monkeypatch):
    path = export.workdir.export_weights(run, tmp_path / "a.safetensors")
    older = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"a.safetensors cannot be written: No space left on device; give another path"):
        export.workdir.export_weights(run, path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.safetensors", older)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.safetensors", "--quantize", "int8"], "--quantize is for a model, not for the weights in a.safet"),
        (["-o", "a.safetensors", "--features"], "--features is for a model, "),
        (["-o", "a.safetensors", "--heatmap"], "--heatmap is for a model, "),
        (["-o", "a.pt"], "a.pt does not end with .onnx or .safetensors; give such a name with -o"),
        (["-o", "no/such/folder/a.safetensors"], "a.safetensors cannot be written: No such file or directory; give"),
    ],
)
def test_options_for_models_are_refused_with_weights(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        program.main([str(run), *options])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_command_exits_with_status_1_if_a_model_cannot_be_exported(run, capsys, monkeypatch):
    def refuse(*arguments):
        raise export.UnsupportedError("cannot export the primitive 'sort'")

    monkeypatch.setattr(export.workdir, "to_onnx", refuse)
    with pytest.raises(SystemExit, match="python -m export: cannot export the primitive 'sort'"):
        program.main([str(run)])


def test_public_names():
    assert sorted(export.__all__) == ["UnsupportedError", "VerificationError", "export_workdir", "to_onnx"]
    assert all(hasattr(export, name) for name in export.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        export.no_such_name  # noqa: B018
