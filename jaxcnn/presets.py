"""Named settings to start a run from: functions that return a `Config`, by name in `PRESETS`.

A docstring opens with the summary for `--help`, then says the command, the hardware and time of a run, and its top-1
accuracy on validation pictures, as far as they were measured.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxcnn import options
from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig
from jaxcnn.config_file import read_source
from jaxcnn.errors import UserError
from jaxcnn.paths import named_path


def digits() -> Config:
    """The default: 1,797 handwritten digits that scikit-learn includes; nothing is downloaded.

    python -m jaxcnn.train

    20 s on two cores of an AMD EPYC (Zen 5): .994 of the 359 pictures held out.
    """
    return Config(
        data=DataConfig(validation_fraction=0.2),
        model=ModelConfig(widths=(32, 64, 128), blocks=(1, 1, 1)),
        augment=AugmentConfig(pad_crop=0.125),
        optim=OptimConfig(learning_rate=0.1, warmup=0.2, weight_decay=5e-4, ema_decay=0.97),
        epochs=15,
    )


def folder() -> Config:
    """Your own pictures, from scratch: a starting point for hundreds or thousands of photographs on a laptop.

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
    """Your own pictures, from weights trained on ImageNet: a starting point for dozens of photographs of each class.

    python -m jaxcnn.train finetune --data.source PATH

    Fits a new classifier to the features of several blocks of EfficientNet-Lite0. `--freeze none` trains the whole
    network from there. jaxcnn/README.md compares it with a linear probe on nine sets of pictures.
    """
    return Config(
        data=DataConfig(source="", image_size=224, fit="crop", crop=1.0),
        model=ModelConfig(name="efficientnet_lite0", pooling="all", precision="auto"),
        augment=AugmentConfig(flip=True, crop_scale=(0.5, 1.0)),
        optim=OptimConfig(name="adamw", learning_rate=3e-5, schedule="cosine", warmup=0.1),
        init_from="efficientnet_lite0",
        freeze="backbone",
        fit_head=True,
        epochs=10,
        batch_size=16,
    )


def tiny_imagenet() -> Config:
    """Tiny ImageNet on two CPU cores: a residual network that sees larger pictures towards the end.

    python -m jaxcnn.train tiny_imagenet

    6 h 19 min of steps on two cores of an AMD EPYC (Zen 5) beside other jobs, 3 h 36 min at the speed of its fastest
    steps: .639 on half of the validation pictures with seed 0. The shipped model was trained for longer, see
    server/models/README.md: .659.
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
    """Tiny ImageNet in minutes on two CPU cores: three epochs at low resolution, .42 top-1.

    python -m jaxcnn.train tiny_imagenet_fast

    6 min 11 s to 7 min 11 s of steps on two cores of an AMD EPYC (Zen 4): .421 to .429 on half of the validation
    pictures with five seeds.
    """
    return Config(
        data=DataConfig(source="tiny_imagenet", image_size=64),
        model=ModelConfig(widths=(64, 128, 256, 256), inference_side=48, precision="auto"),
        augment=AugmentConfig(flip=True, crop_scale=(0.75, 1.0)),
        optim=OptimConfig(name="muon", learning_rate=0.045, warmup=0.2, weight_decay=0.05),
        resolutions=((0.0, 32), (0.6, 48)),
        label_smoothing=0.1,
        epochs=3,
        batch_size=512,
    )


def tiny_imagenet_50() -> Config:
    """Tiny ImageNet in twenty minutes on two CPU cores: nine epochs at low resolution, .50 top-1.

    python -m jaxcnn.train tiny_imagenet_50

    18 min 19 s and 18 min 6 s of steps on two cores of an AMD EPYC (Zen 4): .513 and .514 on half of the
    validation pictures with two seeds.
    """
    return Config(
        data=DataConfig(source="tiny_imagenet", image_size=64),
        model=ModelConfig(widths=(64, 128, 256, 256), inference_side=48, precision="auto"),
        augment=AugmentConfig(flip=True, crop_scale=(0.5, 1.0)),
        optim=OptimConfig(name="muon", learning_rate=0.035, warmup=0.2, weight_decay=0.05),
        resolutions=((0.0, 32), (0.667, 48)),
        label_smoothing=0.1,
        epochs=9,
        batch_size=512,
    )


def tiny_imagenet_seed() -> Config:
    """Tiny ImageNet with the original network and recipe: Adam at a constant rate, no augmentation.

    python -m jaxcnn.train tiny_imagenet_seed

    381 pictures/s on two cores of an AMD EPYC (Zen 5): .098 with `--epochs 2`. It has not been trained to the end.
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

    Not measured on a GPU yet. .67 to .70 is an estimate from published results of similar networks. A step reads and
    writes a quarter less than with three blocks at full resolution and two at a quarter of it, for as many operations:
    memory bounds it, see `python -m jaxcnn.plan tiny_imagenet_gpu`.
    """
    return Config(
        data=DataConfig(source="tiny_imagenet", image_size=64),
        model=ModelConfig(
            widths=(64, 128, 256, 512, 1024),
            blocks=(1, 3, 4, 2, 1),
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


def imagenet() -> Config:
    """ImageNet-1k on several accelerators: ResNet-50 at 224 pixels, the recipe that others are compared with.

    python -m jaxcnn.train imagenet

    The recipe of Goyal et al. 2017 with a cosine schedule and label smoothing (He et al. 2019). Not measured: .76 to
    .77 is an estimate from published results. TFDS asks for the official archives; `--data.source PATH` takes a folder.
    With another batch size, the learning rate changes in proportion.
    """
    return Config(
        data=DataConfig(source="tfds:imagenet2012", image_size=224, fit="crop", crop=0.875),
        model=ModelConfig(name="resnet50", precision="bfloat16"),
        augment=AugmentConfig(flip=True, crop_scale=(0.08, 1.0)),
        optim=OptimConfig(learning_rate=0.4, schedule="cosine", warmup=0.05, weight_decay=1e-4),
        label_smoothing=0.1,
        epochs=90,
        batch_size=1024,
    )


def imagenet_convnext() -> Config:
    """ImageNet-1k on a slice of TPUs or several hosts of GPUs: ConvNeXt-T at 224 pixels.

    python -m jaxcnn.train imagenet_convnext

    The recipe of Liu et al. 2022, with TrivialAugment in place of RandAugment, a quarter of the batch and a quarter of
    the learning rate. Not measured: .81 to .82 is an estimate from published results.
    """
    return Config(
        data=DataConfig(source="tfds:imagenet2012", image_size=224, fit="crop", crop=0.875),
        model=ModelConfig(name="convnext_tiny", precision="bfloat16"),
        augment=AugmentConfig(flip=True, crop_scale=(0.08, 1.0), trivial=True, erase=0.25, mixup=0.8, cutmix=1.0),
        optim=OptimConfig(
            name="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.067, weight_decay=0.05, ema_decay=0.9999
        ),
        label_smoothing=0.1,
        epochs=300,
        batch_size=1024,
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (
        digits,
        folder,
        finetune,
        tiny_imagenet,
        tiny_imagenet_fast,
        tiny_imagenet_50,
        tiny_imagenet_seed,
        tiny_imagenet_gpu,
        imagenet,
        imagenet_convnext,
    )
}


def take_preset(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Returns the name of the preset that a command line begins with, and the options after it.

    Without a name it is `digits`, or `folder` if the options or the file of `--config` name other pictures.

    Raises:
      UserError: there is no such preset, or the file of `--config` cannot be read.
    """
    if arguments and not arguments[0].startswith("-"):
        preset, *others = arguments
        if preset not in PRESETS:
            hint = f"; to train on {preset}, give --data.source {preset}" if Path(preset).exists() else ""
            raise UserError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}{hint}")
        return preset, others
    file = options.peek(arguments, "config", "None")
    recorded = None if file == "None" else read_source(named_path(file, option="config"))
    source = options.peek(arguments, "data.source", recorded)
    return "digits" if source in (None, "digits") else "folder", arguments
