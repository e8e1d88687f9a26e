"""The outputs `features` and `heatmap`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from runs import CALIBRATION, make_run

import export
from export.explain import explain
from export.verify import verify
from jaxcnn.calibration import write_calibration
from jaxcnn.config import ModelConfig
from jaxcnn.models import registry
from jaxcnn.run.checkpoint import load_model


@pytest.mark.run
@pytest.mark.parametrize("model", [{}, {"preactivation": True, "stem": 1}])
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


SIDES = {
    "resnet": 32,
    "seed": 8,
    "prototype1": 4,
    "efficientnet_lite0": 2,
    "resnet18": 2,
    "mobilenet_v3_small": 2,
    "convnext_atto": 2,
    "vit_tiny": 4,
}
"""Rows of the heatmap of a picture of 64x64 pixels, for a network of each family."""


def built(name, filled, side=64):
    """A network that is called with pictures, and its head."""
    shape = {"widths": (8, 12), "blocks": (1, 1), "stem": 1} if name == "resnet" else {}
    network = registry.build(ModelConfig(name=name, **shape), classes=5)
    variables = filled(network, jnp.zeros((1, side, side, 3), jnp.uint8), train=False)
    return lambda image: network.apply(variables, image, train=False), variables["params"]["classifier"]


@pytest.mark.parametrize(
    "name",
    # The others are larger, and take long to trace.
    [name if name in SIDES else pytest.param(name, marks=pytest.mark.run) for name in registry.NAMES],
)
def test_every_network_has_features_and_a_heatmap(name):
    network = registry.build(ModelConfig(name=name), classes=5)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)

    def explained(tree, image):
        return explain(lambda x: network.apply(tree, x, train=False), image, features=True, heatmap=True)

    found = jax.eval_shape(explained, variables, images)
    assert found["logits"].shape == (2, 5)
    assert found["features"].shape == (2, variables["params"]["classifier"]["kernel"].shape[0])
    batch, rows, columns = found["heatmap"].shape
    assert batch == 2
    assert rows == columns > 1


@pytest.mark.run
@pytest.mark.parametrize("name", SIDES)
def test_features_are_what_the_classifier_sees(name, filled):
    classifier, head = built(name, filled)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    logits = jax.jit(classifier)(images)
    for heatmap in (False, True):
        found = jax.jit(lambda x, heatmap=heatmap: explain(classifier, x, features=True, heatmap=heatmap))(images)
        np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
        if name != "prototype1":  # Its logits are normalised.
            expected = np.asarray(found["features"]) @ head["kernel"] + head["bias"]
            np.testing.assert_allclose(expected, logits, rtol=1e-3, atol=1e-3 * np.abs(logits).max())
    assert found["heatmap"].shape == (3, SIDES[name], SIDES[name])
    assert np.asarray(found["heatmap"]).max((1, 2)).max() == pytest.approx(1)


@pytest.mark.run
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_tiny"])
def test_the_file_of_a_network_for_photographs_is_verified(name, filled, tmp_path):
    classifier, _ = built(name, filled)
    inputs = {"image": ("uint8", ("batch", 64, 64, 3))}
    explained = partial(explain, classifier, features=True, heatmap=True)
    path = tmp_path / "m.onnx"
    path.write_bytes(export.to_onnx(explained, inputs).SerializeToString())
    assert verify(path, explained, inputs, tolerances={"heatmap": 1e-2}) < 1e-2


@pytest.mark.run
def test_a_heatmap_of_a_vision_transformer_is_of_the_patches_that_the_last_attention_sees(filled):
    classifier, _ = built("vit_tiny", filled)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))
    tokens = {}

    def top(change):
        """The sum of the largest logits, with a change of what the last attention sees."""

        def intercept(call, arguments, options, context):
            result = call(*arguments, **options)
            if context.module.path == ("block_11", "attention_norm"):
                tokens["seen"] = result
                return result + change
            return result

        with nn.intercept_methods(intercept):
            return classifier(images).max(-1).sum(), tokens["seen"]

    gradient, seen = jax.jit(jax.grad(top, has_aux=True))(jnp.zeros((2, 17, 192)))
    found = jax.jit(lambda x: explain(classifier, x, features=False, heatmap=True))(images)["heatmap"]
    weights = np.asarray(gradient)[:, 1:].mean(1, keepdims=True)
    evidence = np.maximum((np.asarray(seen)[:, 1:] * weights).sum(-1), 0).reshape(2, 4, 4)
    np.testing.assert_allclose(found, evidence / evidence.max((1, 2), keepdims=True), atol=1e-3)


@pytest.mark.run
def test_a_heatmap_of_mobilenet_is_of_the_activated_map(filled):
    classifier, _ = built("mobilenet_v3_small", filled)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8))
    maps = {}

    def top(change):
        """The sum of the largest logits, with a change of the pooled map; it does not affect the map itself."""

        def intercept(call, arguments, options, context):
            if context.module.path == ("head_conv",):
                return call(arguments[0] + change)
            result = call(*arguments, **options)
            if context.module.path == ("last_norm",):
                maps["last"] = jax.nn.hard_swish(result)
            return result

        with nn.intercept_methods(intercept):
            return classifier(images).max(-1).sum(), maps["last"]

    gradient, last = jax.jit(jax.grad(top, has_aux=True))(jnp.zeros((4, 1, 1, 576)))
    found = jax.jit(lambda x: explain(classifier, x, features=False, heatmap=True))(images)["heatmap"]
    evidence = np.maximum((np.asarray(last) * np.asarray(gradient)).sum(-1), 0)
    largest = evidence.max((1, 2), keepdims=True)
    np.testing.assert_allclose(found, evidence / np.where(largest == 0, 1, largest), atol=1e-3)


def test_a_heatmap_is_never_of_a_map_of_one_position(tmp_path):
    """The map before has more, but the gradient of the maximum pool behind it has no rule."""
    run = make_run(tmp_path / "run", stem=3)
    with pytest.raises(export.UnsupportedError, match=r"'select_and_scatter_add' at heatmap/ResNet/stage_1"):
        export.export_workdir(run, tmp_path / "m.onnx", heatmap=True)
    assert export.export_workdir(run, tmp_path / "m.onnx", features=True).exists()


def test_a_network_without_a_feature_map_has_no_heatmap():
    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="classifier")(x.reshape(2, -1).astype(jnp.float32))

    image = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    variables = Head().init(jax.random.key(0), image)
    classifier = partial(Head().apply, variables)
    assert explain(classifier, image, features=True, heatmap=False)["features"].shape == (2, 192)
    with pytest.raises(export.UnsupportedError, match="no module of this network returns a feature map; leave out the"):
        explain(classifier, image, features=False, heatmap=True)
    with pytest.raises(export.UnsupportedError, match="no module of this network is called classifier; leave out feat"):
        explain(lambda x: x.reshape(2, -1).astype(jnp.float32), image, features=True, heatmap=False)
