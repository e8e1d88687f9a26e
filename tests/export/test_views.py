"""Files that average the prediction of a picture with that of its mirror image."""

import json

import numpy as np
import onnxruntime as ort
import pytest
from runs import PICTURES, dataset_of, evaluate_run, make_run

import export
from export import __main__ as program
from export.workdir import Quantization
from jaxcnn.classifier import load
from jaxcnn.errors import UserError
from jaxcnn.evaluation import with_mirror_image


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A run that was trained with mirrored pictures."""
    return make_run(tmp_path_factory.mktemp("mirrored") / "run", flip=True)


@pytest.fixture(scope="module")
def file(mirrored, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "two.onnx"
    program.main([str(mirrored), "-o", str(path), "--views", "2"])
    return path


def run_file(path, pictures):
    return ort.InferenceSession(path).run(["logits", "probabilities"], {"image": pictures})


@pytest.mark.parametrize("count", [1, 7])
def test_probabilities_are_the_mean_of_both_views(mirrored, file, count):
    pictures = np.resize(PICTURES, (count, *PICTURES.shape[1:]))
    expected = with_mirror_image(load(mirrored).logits)(pictures)
    logits, probabilities = run_file(file, pictures)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities, np.exp(expected), atol=1e-6)
    assert np.abs(logits - load(mirrored).logits(pictures)).max() > 1e-3


def test_the_file_has_its_weights_once(mirrored, file, tmp_path):
    one_view = export.export_workdir(mirrored, tmp_path / "one.onnx")
    assert file.stat().st_size < one_view.stat().st_size + 3000


def test_the_file_says_so(file):
    assert json.loads(ort.InferenceSession(file).get_modelmeta().custom_metadata_map["views"]) == 2
    card = (file.with_suffix("") / "README.md").read_text()
    assert "Its accuracy was not measured. The file computes the mean of the probabilities for the picture" in card


def test_its_figures_are_of_both_views(tmp_path):
    run = make_run(tmp_path / "run", flip=True)
    measured = evaluate_run(run, flip=True)["with_flip"]
    path = export.export_workdir(run, tmp_path / "two.onnx", views=2)
    metrics = json.loads(ort.InferenceSession(path).get_modelmeta().custom_metadata_map["metrics"])
    assert metrics == pytest.approx(measured)
    card = (path.with_suffix("") / "README.md").read_text()
    assert f"| cross-entropy | {measured['loss']:.4f} |" in card


@pytest.mark.run
def test_it_can_be_quantized(mirrored, tmp_path):
    dataset = dataset_of(mirrored, validation=20)
    path = export.export_workdir(
        mirrored, tmp_path / "int8.onnx", views=2, quantization=Quantization(dataset=dataset, tolerance=1)
    )
    straight, turned = (run_file(path, pictures)[1] for pictures in (PICTURES, PICTURES[:, :, ::-1].copy()))
    np.testing.assert_allclose(straight, turned, atol=1e-6)


def test_what_a_mirror_image_cannot_help_is_refused(mirrored, run, tmp_path):
    with pytest.raises(UserError, match=r"was trained without mirrored pictures, so .*; leave out --views 2"):
        export.export_workdir(run, tmp_path / "two.onnx", views=2)
    with pytest.raises(UserError, match=r"--features and --heatmap describe one view"):
        program.main([str(mirrored), "--views", "2", "--heatmap"])
    with pytest.raises(UserError, match=r"--views is for runs, not for efficientnet_lite0; leave it out"):
        program.main(["efficientnet_lite0", "--views", "2"])
