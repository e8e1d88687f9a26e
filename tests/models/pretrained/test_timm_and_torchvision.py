"""The networks and the conversion of their weights against the original implementations in timm and torchvision."""

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.config import ModelConfig
from jaxcnn.models import registry
from jaxcnn.models.pretrained.formats import recognise
from jaxcnn.models.pretrained.pth import read_pth

PEER = Path(__file__).with_name("timm_and_torchvision_peer.py")
ORIGINALS = {
    "timm/resnet18": "resnet18",
    "torchvision/resnet18": "resnet18",
    "timm/resnet50": "resnet50",
    "torchvision/resnet50": "resnet50",
    "timm/mobilenetv3_small_100": "mobilenet_v3_small",
    "torchvision/mobilenet_v3_small": "mobilenet_v3_small",
    "timm/mobilenetv3_large_100": "mobilenet_v3_large",
    "torchvision/mobilenet_v3_large": "mobilenet_v3_large",
    **{f"timm/convnext_{size}": f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny")},
    "timm/vit_tiny_patch16_224": "vit_tiny",
    "timm/vit_small_patch16_224": "vit_small",
    "timm/deit_tiny_patch16_224": "vit_tiny",
    "timm/deit_small_patch16_224": "vit_small",
}
"""The implementations, and the network that their tensors are recognised as."""
CLASSES = 10


@pytest.mark.slow
@pytest.mark.parametrize("original", ORIGINALS)
def test_logits_are_those_of_the_original(original: str, peers: str, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", pictures)
    subprocess.run([peers, PEER, tmp_path, original], check=True)
    name, tensors = recognise(read_pth(tmp_path / "weights.pth"))
    assert name == ORIGINALS[original]
    # The pictures are normalised already, by no network's own constants.
    config = ModelConfig(name=name, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))
    network = registry.build(config, classes=CLASSES)
    images = jnp.asarray(pictures)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    expected_shapes = {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    assert {path: array.shape for path, array in tensors.items()} == expected_shapes

    found = np.asarray(
        jax.jit(lambda variables: network.apply(variables, images, train=False))(unflatten_dict(tensors, sep="/"))
    )
    expected = np.load(tmp_path / "logits.npy")
    # Random weights give logits of any size, and rounding errors grow with it.
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{original}: largest difference {difference:.1e} of the largest logit")
    assert expected.std() > 0.01
    assert difference < 1e-5
