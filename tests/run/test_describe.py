"""The description of a run: every setting that changes training changes its description."""

import dataclasses

import pytest

from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig
from jaxcnn.run.describe import (
    counted,
    describe_augmentation,
    describe_fit,
    describe_hardware,
    describe_network,
    describe_optimizer,
    describe_precision,
    describe_software,
    describe_training,
)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"flip": True}, "horizontal flips"),
        ({"pad_crop": 0.0625}, "shifts by up to 6.25% of the side"),
        ({"crop_scale": (0.35, 1.0)}, "random resized crops of 35% to 100% of the area"),
        ({"crop_scale": (0.5, 0.5)}, "random resized crops of 50% of the area"),
        ({"trivial": True}, "TrivialAugment"),
        ({"erase": 0.1}, "random erasing with probability 0.1"),
        ({"mixup": 0.2}, "mixup 0.2"),
        ({"cutmix": 1.0}, "cutmix 1"),
        ({"cutmix": 1.0, "mix_until": 0.9}, "cutmix 1, mixing only in the first 90% of the epochs"),
        ({"flip": True, "mixup": 0.2, "cutmix": 1.0, "mix_until": 0.0}, "horizontal flips"),
        ({"brightness": 0.2}, "brightness ±20%"),
        ({"contrast": 0.3}, "contrast ±30%"),
        ({"saturation": 0.4}, "saturation ±40%"),
    ],
)
def test_augmentation(changes, phrase):
    assert describe_augmentation(AugmentConfig(**changes)) == phrase


def test_no_augmentation():
    assert describe_augmentation(AugmentConfig()) == "none"


@pytest.mark.parametrize(
    ("kind", "describe", "others"),
    [
        (AugmentConfig, describe_augmentation, {"flip": True, "trivial": True, "crop_scale": (0.5, 0.9)}),
        (OptimConfig, describe_optimizer, {"name": "adam", "schedule": "cosine", "clip_norm": 1.0}),
        (
            ModelConfig,
            describe_network,
            {
                "name": "seed",
                "widths": (8, 8, 8, 8),
                "blocks": (1, 2, 3, 4),
                "stem": 1,
                "preactivation": True,
                "inference_side": 80,
                "norm_group": 8,
                "pooling": "all",
                "pixel_mean": (124.0, 116.0, 104.0),
                "pixel_std": (58.0, 57.0, 57.5),
            },
        ),
    ],
)
def test_no_setting_is_left_out(kind, describe, others):
    for field in dataclasses.fields(kind):
        if field.name not in ("precision", "cpu_kernels", "mix_until"):  # where it is computed; nothing alone
            changed = kind(**{field.name: others.get(field.name, 0.125)})
            assert describe(changed) != describe(kind()), field.name


def test_network():
    config = ModelConfig(widths=(64, 128, 256), blocks=(1, 0, 2), dropout=0.2)
    assert describe_network(config) == (
        "resnet, stages of 64, 128 and 256 channels with 1, 0 and 2 residual blocks, stem folds 2x2 pixels into "
        "channels, dropout 0.2 before the last layer"
    )
    assert describe_network(ModelConfig(widths=(8,), blocks=(1,), stem=1)).startswith("resnet, stages of 8 channels")
    resizing = ModelConfig(inference_side=80)
    assert describe_network(resizing).endswith("channels, resizes its input to 80x80 pixels at inference")
    assert describe_network(ModelConfig(name="seed")) == "seed"
    normalised = ModelConfig(name="vit_tiny", pixel_mean=(124.0, 116.0, 104.0), pixel_std=(58.0, 57.0, 57.5))
    assert describe_network(normalised) == (
        "vit_tiny, subtracts 124, 116, 104 for red, green and blue, divides by 58, 57, 57.5 for red, green and blue"
    )


def test_pooling():
    pooled = "classifier of mean and deviation of each channel after several blocks"
    assert describe_network(ModelConfig(name="vit_tiny", pooling="all")) == f"vit_tiny, {pooled}"
    assert describe_network(ModelConfig(pooling="all")).endswith(pooled)
    assert pooled not in describe_network(ModelConfig())


def test_counts_of_one_are_singular():
    one = describe_network(ModelConfig(widths=(1,), blocks=(1,), stem=1))
    assert one == "resnet, stages of 1 channel with 1 residual block"
    assert describe_network(ModelConfig(widths=(8,), blocks=(2,), stem=1)).endswith("8 channels with 2 residual blocks")
    assert describe_training(Config(epochs=1), steps_per_epoch=1).startswith("1 epoch of 1 step, ")
    assert [counted(count, "step") for count in (0, 1, 2, 1390)] == ["0 steps", "1 step", "2 steps", "1,390 steps"]


def test_precision():
    auto = ModelConfig(precision="auto")
    assert describe_precision(ModelConfig(precision="bfloat16"), {}) == "bfloat16"
    assert describe_precision(auto, {"precision": "float32"}) == "float32"
    assert "if the machine" in describe_precision(auto, {"jax": "0.7"})


def test_training_at_several_resolutions():
    config = Config(epochs=10, batch_size=256, resolutions=((0.0, 48), (0.8, 64)), label_smoothing=0.1, seed=7)
    assert describe_training(config, steps_per_epoch=1390) == (
        "10 epochs of 1,390 steps, batch size 256, 8 at 48x48 pixels, then 2 at 64x64 pixels, label smoothing 0.1, "
        "seed 7"
    )
    ended = describe_training(Config(balance=True, early_stopping=1), steps_per_epoch=None)
    assert "32x32 pixels, classes balanced, ends after 1 epoch without a better validation top-1, seed 0" in ended
    start = Config(init_from="runs/first/model.safetensors")
    assert describe_training(start, steps_per_epoch=None).endswith(", seed 0, initial weights from model.safetensors")
    assert describe_training(Config(), steps_per_epoch=None) == "30 epochs, batch size 64, 32x32 pixels, seed 0"


def test_hardware():
    environment = {"devices": "cpu", "processor": "EPYC", "cores": "2"}
    assert describe_hardware(environment) == "EPYC, 2 cores"
    assert describe_hardware(environment | {"devices": "H200, H200"}) == "H200, H200; EPYC, 2 cores"


def test_software():
    environment = {"jax": "0.12.0", "flax": "0.12.1", "optax": "0.2.8", "python": "3.12.1"}
    assert describe_software(environment) == "jax 0.12.0, flax 0.12.1, optax 0.2.8, Python 3.12.1"
    recorded = environment | {"jaxcnn": "0.1.0+2d41c5389f31"}
    assert describe_software(recorded).startswith("jaxcnn 0.1.0+2d41c5389f31, jax 0.12.0, ")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DataConfig(), ""),
        (DataConfig(image_size=224), "the middle of central squares of 256x256"),
        (DataConfig(image_size=224, crop=1.0), "the central square"),
        (DataConfig(image_size=224, fit="pad"), "the whole picture between gray bars"),
        (DataConfig(image_size=224, fit="stretch"), ""),
    ],
)
def test_the_fit_of_pictures_that_are_not_square(config, expected):
    assert describe_fit(config) == expected
