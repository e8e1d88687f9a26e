"""Named settings to start a run from. Each is a function, so that nobody can change another's."""

from collections.abc import Callable

from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig


def digits() -> Config:
    """The embedded default: 1,797 handwritten digits from scikit-learn; nothing is downloaded.

    python -m jaxcnn.train
    """
    return Config(
        data=DataConfig(validation_fraction=0.2),
        model=ModelConfig(widths=(32, 64, 128), blocks=(1, 1, 1)),
        augment=AugmentConfig(pad_crop=0.125),
        optim=OptimConfig(learning_rate=0.1, warmup=0.2, weight_decay=5e-4, ema_decay=0.97),
        epochs=15,
    )


def folder() -> Config:
    """Your own pictures: a starting point for some hundreds or thousands of photographs on a laptop.

    python -m jaxcnn.train folder --data.source PATH
    """
    return Config(
        data=DataConfig(source="", image_size=64),
        model=ModelConfig(widths=(32, 64, 128, 256), precision="auto"),
        augment=AugmentConfig(flip=True, crop_scale=(0.5, 1.0), erase=0.1, brightness=0.2, contrast=0.2),
        optim=OptimConfig(learning_rate=0.1, schedule="cosine", warmup=0.1, weight_decay=5e-4, ema_decay=0.99),
        label_smoothing=0.1,
        epochs=40,
    )


def finetune() -> Config:
    """Your own pictures, from the shipped weights: a starting point for some dozens of photographs of each class.

    python -m jaxcnn.train finetune --data.source PATH
    """
    return Config(
        data=DataConfig(source="", image_size=64),
        model=ModelConfig(precision="auto"),
        augment=AugmentConfig(flip=True, crop_scale=(0.5, 1.0), erase=0.1, brightness=0.2, contrast=0.2),
        optim=OptimConfig(learning_rate=0.03, schedule="cosine", warmup=0.1, weight_decay=5e-4, ema_decay=0.9),
        init_from="shipped",
        label_smoothing=0.1,
        epochs=20,
        batch_size=32,
    )


def tiny_imagenet() -> Config:
    """Tiny ImageNet on two CPU cores: a residual network that sees larger pictures as it learns.

    python -m jaxcnn.train tiny_imagenet

    6 h 19 min of steps on two cores of an AMD EPYC (Zen 5) with other jobs beside it, by its fastest steps 3 h 36 min:
    .639 top-1 on half of the validation pictures, seed 0. The model that ships has seen sixteen passes more, at 80
    pixels, as the README tells: .653.
    """
    return Config(
        data=DataConfig(source="tiny_imagenet", image_size=64),
        model=ModelConfig(
            widths=(64, 128, 256, 320),
            blocks=(1, 1, 2, 1),
            inference_side=80,
            precision="auto",
        ),
        augment=AugmentConfig(
            flip=True,
            crop_scale=(0.3, 1.0),
            erase=0.1,
            mixup=0.2,
            cutmix=1.0,
            mix_until=0.98,
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
        ),
        optim=OptimConfig(name="muon", learning_rate=0.008, warmup=0.1, weight_decay=0.05),
        resolutions=((0.0, 32), (0.3, 48), (0.86, 64)),
        label_smoothing=0.1,
        epochs=100,
        batch_size=256,
    )


def tiny_imagenet_fast() -> Config:
    """Tiny ImageNet in five minutes on two CPU cores: three short passes, .43 top-1.

    python -m jaxcnn.train tiny_imagenet_fast

    About 4 minutes of steps on two cores of an AMD EPYC (Zen 5): .430 to .441 top-1 on half of the validation pictures,
    with five seeds.
    """
    return Config(
        data=DataConfig(source="tiny_imagenet", image_size=64),
        model=ModelConfig(widths=(64, 128, 256, 256), inference_side=48, precision="auto"),
        augment=AugmentConfig(flip=True, crop_scale=(0.75, 1.0)),
        optim=OptimConfig(name="muon", learning_rate=0.025, warmup=0.2, weight_decay=0.05),
        resolutions=((0.0, 32), (0.6, 48)),
        label_smoothing=0.1,
        epochs=3,
        batch_size=256,
    )


def tiny_imagenet_seed() -> Config:
    """Tiny ImageNet with the original network and recipe: Adam at a constant rate, no augmentation.

    python -m jaxcnn.train tiny_imagenet_seed
    """
    return Config(
        data=DataConfig(source="tiny_imagenet", image_size=64),
        model=ModelConfig(name="seed", precision="auto"),
        optim=OptimConfig(name="adam", learning_rate=1e-3, schedule="constant"),
        epochs=100,
        batch_size=128,
    )


def tiny_imagenet_gpu() -> Config:
    """Tiny ImageNet on one GPU: a deep pre-activation network at full resolution.

    python -m jaxcnn.train tiny_imagenet_gpu

    Not run on a GPU yet: .67 to .70 top-1 is an estimate, from what such networks and recipes reach elsewhere. On two
    CPU cores, with `--epochs 1 --batch_size 32 --optim.learning_rate .05`, 331 steps take the loss of mixed pairs from
    5.43 to 5.25.
    """
    return Config(
        data=DataConfig(source="tiny_imagenet", image_size=64),
        model=ModelConfig(
            widths=(64, 128, 256, 512, 1024),
            blocks=(3, 3, 2, 2, 1),
            stem=1,
            preactivation=True,
            precision="bfloat16",
        ),
        augment=AugmentConfig(
            flip=True,
            crop_scale=(0.35, 1.0),
            erase=0.1,
            mixup=0.2,
            cutmix=1.0,
            mix_until=0.9,
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
        ),
        optim=OptimConfig(learning_rate=0.2, schedule="cosine", warmup=0.05, weight_decay=5e-4, ema_decay=0.9998),
        label_smoothing=0.1,
        epochs=150,
        batch_size=256,
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (
        digits,
        folder,
        finetune,
        tiny_imagenet,
        tiny_imagenet_fast,
        tiny_imagenet_seed,
        tiny_imagenet_gpu,
    )
}
