"""The trained model that is part of the repository: its files belong together and keep their limits."""

import json
import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from jaxcnn import weights, weights_source
from jaxcnn.classifier import load
from jaxcnn.config import DataConfig
from jaxcnn.evaluation import measure
from jaxcnn.evaluation_data import load_evaluation_data
from jaxcnn.models import registry
from jaxcnn.state import init_variables

ONNX = weights_source.SHIPPED.with_suffix(".onnx")
INT8 = ONNX.with_name("tiny_imagenet.int8.onnx")
FOLDER = ONNX.with_suffix("")
ARCHIVE = os.environ.get("TINY_IMAGENET")
"""The real zip, which is not part of the repository."""


def metadata(path: Path) -> dict:
    return {each.key: json.loads(each.value) for each in onnx.load(path).metadata_props}


def test_sizes():
    assert ONNX.stat().st_size <= 25e6
    files = [path for path in ONNX.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 50e6


@pytest.mark.parametrize("path", [ONNX, INT8], ids=lambda path: path.name)
def test_contract(path):
    model = onnx.load(path)
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    facts = metadata(path)
    assert len(facts["names"]) == len(facts["wnids"]) == 200
    assert facts["wnids"] == sorted(facts["wnids"])
    assert facts["dataset"] == "tiny_imagenet"
    assert "research" in facts["license"]
    assert facts["calibration"]["ece_after"] <= 0.03


def test_no_picture_of_the_data_set_is_given_away():
    description = json.loads(ONNX.with_suffix(".json").read_text())
    assert description["example_pictures"] == "noise"
    with np.load(FOLDER / "example.npz") as example:
        neighbours = np.diff(example["image"].astype(float), axis=2)
    assert np.abs(neighbours).mean() > 60  # uniform noise has 85, photographs about 10


def test_the_example_is_what_the_file_says():
    with np.load(FOLDER / "example.npz") as example:
        arrays = dict(example)
    session = onnxruntime.InferenceSession(ONNX, providers=["CPUExecutionProvider"])
    found = session.run(list(arrays)[1:], {"image": arrays["image"]})
    for name, values in zip(list(arrays)[1:], found, strict=True):
        np.testing.assert_allclose(values, arrays[name], rtol=1e-3, atol=1e-5)


def test_the_weights_to_fine_tune_are_those_of_the_file():
    loaded = weights.read_weights("shipped")
    classifier = load(ONNX)
    model = registry.build(loaded.model, classes=200)
    shapes = jax.eval_shape(lambda: init_variables(jax.random.key(0), model=model, image_size=64))
    with np.load(FOLDER / "example.npz") as example:
        pictures = example["image"]
    logits = jax.jit(partial(model.apply, train=False))(loaded.fill(shapes, with_head=True), pictures)
    expected = np.asarray(classifier.logits(pictures)) * metadata(ONNX)["calibration"]["temperature"]
    assert loaded.has_classes(classifier.names, classifier.wnids)
    assert np.abs(np.asarray(logits) - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.skipif(ARCHIVE is None, reason="needs Tiny ImageNet's zip: set TINY_IMAGENET to its path")
@pytest.mark.timeout(1800)  # The first time, all pictures are decoded.
@pytest.mark.parametrize("path", [ONNX, INT8], ids=lambda path: path.name)
def test_the_accuracy_is_what_the_file_says(path):
    facts, classifier = metadata(path), load(path)
    dataset = load_evaluation_data(
        DataConfig(source="tiny_imagenet", archive=ARCHIVE, image_size=64), classifier, hold_out=True
    )
    found = measure(classifier.logits, dataset.validation, classes=200, batch_size=250)
    assert found.top1 == pytest.approx(facts["metrics"]["top1"], abs=0.002)
    assert found.ece <= 0.03
