"""Weights in files of timm and torchvision on this machine."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jaxcnn.errors import UserError
from jaxcnn.models.pretrained import read_pretrained
from jaxcnn.models.pretrained.files import read_file
from jaxcnn.models.pretrained.formats import FORMATS, recognise

ATTENTION = "blocks.11.attn.qkv.weight"


def write(path: Path, tensors: dict[str, np.ndarray], *, metadata: dict[str, str] | None = None) -> str:
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    return str(path)


def vit(**others: np.ndarray) -> dict[str, np.ndarray]:
    """A few tensors of a ViT."""
    return {ATTENTION: np.arange(576 * 192, dtype=np.float32).reshape(576, 192), **others}


CFG = {
    "tag": "augreg_in21k_ft_in1k",
    "input_size": [3, 256, 256],
    "mean": [0.5, 0.25, 1],
    "std": [0.5, 0.5, 0.1],
    "crop_pct": 0.8,
    "interpolation": "bilinear",
    "license": "apache-2.0",
}


def test_a_file_with_its_description(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", vit(**{"head.bias": np.zeros(1000, np.float16)}))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": CFG}))
    found = read_pretrained(path)
    assert found is not None
    assert (found.model.name, found.model.pixel_mean) == ("vit_tiny", (127.5, 63.75, 255.0))
    assert found.model.pixel_std == (127.5, 127.5, 25.5)
    assert (found.side, found.crop, found.filter, found.license) == (256, 0.8, "bilinear", "apache-2.0")
    assert (found.dataset, len(found.names), found.wnids[1]) == ("ImageNet-1k", 1000, "n01443537")
    assert str(found.origin).startswith("model.safetensors, sha256 ")
    kernel = found.tensors["params/block_11/attention/qkv/kernel"]
    np.testing.assert_array_equal(kernel, vit()[ATTENTION].T)
    assert {array.dtype for array in found.tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["deit_tiny", "vit_tiny"])
def test_without_description_nothing_is_guessed(tmp_path: Path, name: str) -> None:
    found = read_file(write(tmp_path / f"my_{name}.safetensors", vit(**{"head.bias": np.zeros(1000, np.float32)})))
    assert found is not None
    assert (found.model.name, found.model.pixel_mean, found.side, found.crop) == (name, None, 224, 0.9)
    assert (found.names, found.dataset, found.license) == ((), "unknown pictures", "")


def test_other_classes_have_no_names(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", vit(**{"head.bias": np.zeros(7, np.float32)}))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "deit_tiny", "pretrained_cfg": CFG}))
    found = read_file(path)
    assert found is not None
    assert (found.model.name, found.names) == ("deit_tiny", ())


def test_the_same_tensors_may_be_of_vit_or_deit(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", vit())
    with pytest.raises(UserError, match=r"may be of vit_tiny or of deit_tiny, .*; put one of the two into the file's"):
        read_file(path)


def test_other_files_are_left_to_others(tmp_path: Path) -> None:
    assert read_file("shipped") is None
    assert read_file(str(tmp_path / "missing.safetensors")) is None
    assert read_file(write(tmp_path / "own.safetensors", {"params/classifier/bias": np.zeros(2, np.float32)})) is None
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 20)
    assert read_file(str(tmp_path / "damaged.safetensors")) is None


def test_a_file_of_an_unknown_network_of_pytorch(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": np.zeros(2, np.float32)}, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors: the tensors are of none of the networks resnet18, "):
        read_file(path)


@pytest.mark.parametrize(
    ("architecture", "tensor", "shape"),
    [
        ("resnetaa50", "layer4.2.conv3.weight", (2048, 512, 1, 1)),
        ("tf_mobilenetv3_large_100", "blocks.6.0.conv.weight", (960, 160, 1, 1)),
    ],
)
def test_networks_that_only_look_alike_are_refused(
    tmp_path: Path, architecture: str, tensor: str, shape: tuple[int, ...]
) -> None:
    path = write(tmp_path / "model.safetensors", {tensor: np.zeros(shape, np.float16)})
    assert read_file(path) is not None
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    with pytest.raises(UserError, match=f"is of {architecture}, which has the tensors of "):
        read_file(path)


@pytest.mark.parametrize("others", [-1, 0, 1])
def test_a_deeper_network_is_not_taken_for_a_smaller_one(tmp_path: Path, others: int) -> None:
    """ResNet-34 has all tensors of ResNet-18, and would be refused as late as when its weights are copied."""
    tensors = {
        "blocks.5.0.conv.weight": np.zeros((576, 96, 1, 1), np.float16),
        "bn1.weight": np.zeros(1_517_856 - 576 * 96 + others, np.float16),
        "bn1.running_mean": np.zeros(16, np.float16),
        "classifier.weight": np.zeros((7, 1024), np.float16),
        "classifier.bias": np.zeros(7, np.float16),
    }
    path = write(tmp_path / "model.safetensors", tensors)
    if others == 0:
        assert read_file(path) is not None
        return
    message = rf"another network than mobilenet_v3_small, which has 1,517,856 .*, not {1_517_856 + others:,}; take"
    with pytest.raises(UserError, match=message):
        read_file(path)


@pytest.mark.parametrize("name", ["gravity.safetensors", "my_activity.safetensors"])
def test_a_word_in_a_file_name_is_no_network(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="may be of vit_tiny or of deit_tiny"):
        read_file(write(tmp_path / name, vit()))


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (vit(**{"head_dist.bias": np.zeros(2, np.float32)}), None, "the weights are of a distilled DeiT, which has a"),
        (
            vit(pos_embed=np.zeros((1, 577, 192), np.float32)),
            None,
            "the weights have 577 positions, as for pictures of 384x384 pixels in patches of 16x16, but jaxcnn's "
            "networks have 197, for 224x224; take the weights whose name ends with patch16_224",
        ),
        (
            vit(
                **{
                    "pos_embed": np.zeros((1, 50, 192), np.float32),
                    "patch_embed.proj.weight": np.zeros((192, 3, 32, 32), np.float32),
                }
            ),
            None,
            "the weights have 50 positions, as for pictures of 224x224 pixels in patches of 32x32, but",
        ),
        (vit(**{"neck.bias": np.zeros(2, np.float32)}), None, "the tensor neck.bias belongs to no part"),
        (vit(**{"head.bias": np.full(2, np.nan, np.float32)}), None, "params/classifier/bias has values that are not"),
        (vit(), "[]", "config.json is not timm's description of the weights; remove it"),
        (vit(), "{", "config.json is not timm's description of the weights ("),
        (vit(), '{"pretrained_cfg": {"mean": [1, 2]}}', "config.json has an invalid value ("),
        (vit(), '{"pretrained_cfg": {"std": [0, 0, 0]}}', "model.pixel_std is (0.0, 0.0, 0.0); it must be"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, tensors: dict[str, np.ndarray], config: str | None, message: str) -> None:
    path = write(tmp_path / "vit.safetensors", tensors)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=re.escape(message)):
        read_file(path)


def test_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    header = json.dumps({ATTENTION: {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "vit.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(UserError, match=r"vit\.safetensors has tensors of a type that NumPy lacks"):
        read_file(str(path))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form.network}-{form.tensor}")
def test_every_format_is_recognised_by_one_tensor(form) -> None:
    network, found = recognise({form.tensor: np.zeros(form.shape, np.float32)})
    assert network == form.network
    assert len(found) == 1


def test_torchvision_adds_more_to_the_variance() -> None:
    tensors = {
        "features.12.0.weight": np.zeros((576, 96, 1, 1), np.float32),
        "features.0.1.running_var": np.ones(16, np.float32),
        "features.0.1.num_batches_tracked": np.array(3),
    }
    network, found = recognise(tensors)
    assert network == "mobilenet_v3_small"
    np.testing.assert_allclose(found["batch_stats/stem_norm/var"], 1.00099, rtol=1e-6)


def test_resnet50_is_not_taken_for_resnet18() -> None:
    shapes = {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
    }
    assert recognise({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})[0] == "resnet50"
