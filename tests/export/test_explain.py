"""The outputs `features` and `heatmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from runs import CALIBRATION, make_run

import export
from export.explain import explain
from jaxcnn.calibration import write_calibration
from jaxcnn.run.checkpoint import load_model


@pytest.mark.run
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


def test_a_network_without_a_feature_map_has_no_heatmap():
    image = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    with pytest.raises(export.UnsupportedError, match="no module of this network returns a feature map"):
        explain(lambda x: x.reshape(2, -1).astype(jnp.float32), image, features=True, heatmap=False)
