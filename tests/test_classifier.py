"""Opening a trained model: a workdir's best checkpoint, or an ONNX file that keeps the contract."""

import dataclasses
import hashlib
import json
from functools import partial

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from scipy.special import softmax

from jaxcnn import config as settings
from jaxcnn.calibration import Calibration, write_calibration
from jaxcnn.classifier import load
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.data import Resize
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.onnx_file import open_session
from jaxcnn.optim import make_optimizer
from jaxcnn.prediction import to_input
from jaxcnn.run.checkpoint import open_checkpoints
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import create_state

CONFIG = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(1,)), batch_size=4)
NAMES = ("red", "green", "blue")
CALIBRATION = {"step": 7, "temperature": 2.0, "count": 9, "ece_before": 0.2, "ece_after": 0.1}


def write_onnx(path, *, side=8, output="logits", **metadata):
    """A model that answers with the mean of each colour; None leaves a piece of metadata out."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], [output], axes=[1, 2], keepdims=0),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = {"names": NAMES, "wnids": [], "image_size": [8, 8], "config": json.loads(settings.to_json(CONFIG))}
    written = {key: json.dumps(value) for key, value in (values | metadata).items() if value is not None}
    helper.set_model_props(model, written)
    onnx.save(model, path)
    return path


def test_a_flipped_bit_in_an_onnx_file_with_a_description_is_reported(tmp_path):
    path = write_onnx(tmp_path / "model.onnx", wnids=["n1", "n2", "n3"])
    content = path.read_bytes()
    described = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(described))
    assert load(path).names
    random = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(content)
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"model\.onnx is damaged, or was replaced: its SHA-256 differs from the one in"
        ):
            load(path)
    # The description of another file, or none, says nothing about this one.
    path.write_bytes(content + b"")
    for text in ("{}", "[", json.dumps(described | {"file": "other.onnx", "sha256": ""})):
        path.with_suffix(".json").write_text(text)
        assert load(path).names


def test_an_onnx_file(tmp_path):
    classifier = load(write_onnx(tmp_path / "model.onnx", wnids=["n1", "n2", "n3"]))
    assert classifier.names == NAMES
    assert classifier.wnids == ("n1", "n2", "n3")
    assert classifier.config == CONFIG
    assert (classifier.step, classifier.temperature) == (None, 1)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(classifier.logits(images), images.mean(axis=(1, 2)), rtol=1e-5)


def test_the_logits_of_a_file_are_divided_by_its_temperature_already(tmp_path):
    path = write_onnx(tmp_path / "model.onnx", step=7, calibration=CALIBRATION)
    classifier = load(path)
    assert (classifier.step, classifier.temperature) == (7, 2)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(classifier.logits(images), images.mean(axis=(1, 2)), rtol=1e-5)


def test_a_workdir(tmp_path):
    Workdir(tmp_path).record(CONFIG, Classes(NAMES, (), "colours", "MIT"))
    model = registry.build(CONFIG.model, classes=3)
    optimizer = make_optimizer(CONFIG.optim, steps=10)
    state = create_state(jax.random.key(0), model=model, optimizer=optimizer, image_size=8, averaged=False)
    with open_checkpoints(Workdir(tmp_path).checkpoints) as checkpoints:
        checkpoints.save(state, metrics={"top1": 0.5})
    classifier = load(tmp_path)
    assert classifier.names == NAMES
    assert classifier.config == dataclasses.replace(CONFIG, data=Workdir(tmp_path).read_data_config())
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    expected = jax.jit(partial(model.apply, train=False))(state.variables, images)
    np.testing.assert_allclose(classifier.logits(images), expected, rtol=1e-5, atol=1e-5)
    assert (classifier.step, classifier.temperature) == (0, 1)
    calibration = Calibration(step=0, temperature=1.6, count=3, ece_before=0.2, ece_after=0.1)
    write_calibration(calibration, tmp_path / "calibration.json")
    calibrated = load(tmp_path)
    assert calibrated.temperature == 1.6
    np.testing.assert_allclose(calibrated.logits(images), expected / 1.6, rtol=1e-5, atol=1e-5)


def test_a_path_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"gone does not exist; give a workdir or an \.onnx file"):
        load(tmp_path / "gone")


def test_a_folder_that_is_not_a_workdir(tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a training run"):
        load(tmp_path)


@pytest.mark.parametrize("text", [b"red", b"image_size", b"logits", b"batch"])
def test_a_file_whose_texts_are_not_utf_8(tmp_path, capfd, text):
    path = tmp_path / "model.onnx"
    write_onnx(path)
    path.write_bytes(path.read_bytes().replace(text, b"\xcf" * len(text)))
    with pytest.raises(UserError, match=r"neither a workdir nor a readable \.onnx file \(.*utf-8"):
        open_session(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 50])
def test_a_file_that_is_not_a_model(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"neither a workdir nor a readable \.onnx file") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "was not made by .*: metadata.names is missing"),
        ({"config": None}, "metadata.config is missing"),
        ({"wnids": None}, "metadata.wnids is missing"),
        ({"image_size": None}, "metadata.image_size is missing"),
        ({"calibration": {}}, "metadata.calibration.step is missing"),
        ({"calibration": CALIBRATION | {"temperature": None}}, "calibration.temperature is None; it must be a number"),
        (
            {"resize": {"mode": "crop", "filter": "bicubic"}},
            "metadata.resize is .*'crop'.*, but .*'stretch'.* in metadata.config",
        ),
        (
            {"resize": {"mode": "zoom", "filter": "bicubic"}},
            "metadata.resize.mode is 'zoom'; it must be one of 'stretch', 'crop', 'pad'",
        ),
        ({"step": "7"}, "metadata.step is '7'; it must be a whole number"),
        ({"names": {"0": "red"}}, "metadata.names is {'0': 'red'}; it must be a list"),
        ({"config": {"data": 3}}, r"was not made by .*: metadata\.config\.data is 3; it must be an object"),
        ({"image_size": [8, 9]}, r"metadata.image_size is \[8, 9\], but 8 in metadata.config"),
        ({"names": ["red", "green"]}, r"logits is .*\[3\]"),
        ({"side": 9}, r"image is .*\[9, 9, 3\]"),
        ({"output": "scores"}, "logits is absent"),
    ],
)
def test_a_model_that_breaks_the_contract(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load(write_onnx(tmp_path / "model.onnx", **changes))
    assert "\n" not in str(caught.value)


def test_metadata_that_is_not_json(tmp_path):
    path = write_onnx(tmp_path / "model.onnx", names=None)
    model = onnx.load(path)
    model.metadata_props.add(key="names", value="red, green")
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"metadata\.names is not JSON"):
        load(path)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_prediction_is_of_the_picture_that_the_data_settings_ask_for(tmp_path, fit):
    resize = Resize(mode=fit, side=9 if fit == "crop" else None)
    data = DataConfig(image_size=8, fit=fit, crop=8 / 9 if fit == "crop" else None)
    config = dataclasses.asdict(dataclasses.replace(CONFIG, data=data))
    classifier = load(write_onnx(tmp_path / "model.onnx", config=config, resize=dataclasses.asdict(resize)))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 44, 3), np.uint8))
    picture.save(tmp_path / "wide.png")
    seen = to_input(picture, size=8, resize=resize, where="x").mean((0, 1))
    for given in (picture, tmp_path / "wide.png", np.asarray(picture)):
        found = classifier.predict(given)
        np.testing.assert_allclose(found.probability, softmax(seen).max(), rtol=1e-4)
        assert found.index == seen.argmax()
