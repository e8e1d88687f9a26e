"""EfficientNet-Lite: its published sizes, its kernels, and its weights against the original implementation."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxcnn import models
from jaxcnn.config import ModelConfig
from jaxcnn.models.pretrained import NAMES, read_pretrained
from jaxcnn.models.pretrained.imagenet import imagenet_classes
from jaxcnn.models.pretrained.packages import PACKAGES

PARAMETERS = {0: 4_652_008, 1: 5_416_680, 2: 6_092_072, 3: 8_197_096, 4: 13_006_568}
"""Published as 4.7, 5.4, 6.1, 8.2 and 13.0 million."""


def wave(side: int) -> np.ndarray:
    """A picture that needs no file: waves in each channel, [1, side, side, 3]."""
    rows, columns = np.mgrid[:side, :side] / side
    channels = [np.sin(7 * rows + 3 * columns), np.cos(11 * columns), np.sin(5 * rows * columns + 1)]
    return np.asarray(127.5 + 127.5 * np.stack(channels, -1), np.uint8)[None]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    network = models.build(ModelConfig(name=name), classes=1000)
    found = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("number", PARAMETERS)
def test_the_networks_have_their_published_size(number):
    found = shapes(f"efficientnet_lite{number}")
    assert sum(int(np.prod(shape)) for path, shape in found.items() if path.startswith("params/")) == PARAMETERS[number]


@pytest.mark.parametrize("train", [False, True])
def test_cpu_kernels_compute_the_same(train):
    config = ModelConfig(name="efficientnet_lite0")
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    images = jnp.asarray(images)
    plain = models.build(config, classes=3)
    variables = plain.init(jax.random.key(0), images, train=False)

    def run(network):
        rngs = {"dropout": jax.random.key(1)}
        return network.apply(variables, images, train=train, rngs=rngs, mutable=["batch_stats"])

    expected, found = (
        jax.jit(lambda n=n: run(n))() for n in (plain, models.build(config, classes=3, cpu_kernels=True))
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


LOGITS = {
    "efficientnet_lite0": [
        (885, 6.46772),
        (782, 6.35563),
        (585, 6.03007),
        (0, -0.78680),
        (500, -1.11158),
        (999, -0.09008),
    ],
    "efficientnet_lite1": [
        (585, 8.53388),
        (854, 8.08519),
        (629, 7.39131),
        (0, 0.51452),
        (500, -0.70883),
        (999, -1.85618),
    ],
    "efficientnet_lite2": [
        (854, 7.02586),
        (653, 6.17556),
        (585, 6.06087),
        (0, -1.19512),
        (500, -1.79062),
        (999, -1.83684),
    ],
}
"""What `efficientnet-lite-pytorch` 0.1.0 computes for `wave(side)` with the real weights: classes and their logits."""


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_compute_what_the_original_does(name):
    package = PACKAGES[name]
    if importlib.util.find_spec(package.module) is None:
        pytest.skip(f"{package.name} is not installed")
    found = read_pretrained(name)
    assert {path: array.shape for path, array in found.tensors.items()} == shapes(name)
    network = models.build(found.model, classes=1000)
    variables = traverse_util.unflatten_dict(found.tensors, sep="/")
    logits = np.asarray(network.apply(variables, jnp.asarray(wave(found.side)), train=False))[0]
    classes, values = zip(*LOGITS[name], strict=True)
    np.testing.assert_allclose(logits[list(classes)], values, atol=2e-5)
    assert logits.argmax() == classes[0]


def test_the_classes_of_imagenet():
    names, wnids = imagenet_classes()
    assert len(names) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert names[1] == "goldfish"
    assert wnids[1] == "n01443537"
