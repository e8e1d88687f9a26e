"""The settings of a run: one frozen dataclass for each component, to JSON and back.

Standard library only, so that anything may read the settings of a run. The docstring below a field is its help text on
the command line. Every dataclass checks its values and raises UserError with the name of the first that is invalid.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from jaxcnn.errors import UserError
from jaxcnn.typed_json import EARLIER, decode

ModelName = Literal[
    "resnet",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "efficientnet_lite3",
    "efficientnet_lite4",
    "resnet18",
    "resnet50",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "convnext_atto",
    "convnext_femto",
    "convnext_pico",
    "convnext_nano",
    "convnext_tiny",
    "vit_tiny",
    "vit_small",
    "deit_tiny",
    "deit_small",
    "seed",
    "prototype1",
    "prototype2",
    "prototype3",
    "prototype4",
    "prototype5",
    "prototype6",
]

ORIGINALS = ("seed", *(f"prototype{number}" for number in range(1, 7)))
"""The networks of the Keras project, which have no other form."""

CROP_FROM = 128
"""The `image_size` from which pictures are cropped by default. Smaller ones are icons, digits and the like."""
CROP = 0.875
"""The share that `crop` shows by default: 224 of 256 pixels, as most networks for ImageNet are evaluated."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pictures come from, their size, and which of them are held out."""

    source: str = "digits"
    """`digits` (included), `tiny_imagenet`, `tfds:NAME` (from TensorFlow Datasets), or the path of a folder or zip with
    one folder for each class, of tar files in WebDataset's layout, or of Parquet files in the layout of Hugging Face's
    datasets."""
    archive: str | None = None
    """Path of Tiny ImageNet's zip, for `tiny_imagenet` only. None: it is downloaded."""
    cache_dir: str = "~/.cache/jaxcnn"
    """Folder that keeps downloads, decoded pictures and, except for CPUs with oneDNN, compiled programs."""
    store: Literal["auto", "decoded", "encoded"] = "auto"
    """How pictures are kept in cache_dir: `decoded` once, as pixels; `encoded`, in large files, and decoded in every
    epoch. auto: decoded if that takes at most 100 GB and there is room for it."""
    image_size: int = 32
    """Side in pixels of the squares that all pictures are resized to; the exported model takes pictures of this
    size."""
    fit: Literal["crop", "pad", "stretch"] | None = field(default=None, metadata={EARLIER: "stretch"})
    """How a picture becomes a square: `crop` shows the middle of its central square, `pad` the whole picture between
    gray bars, `stretch` the whole picture distorted. None: crop if image_size is 128 or more, else stretch."""
    crop: float | None = None
    """Share of the shorter side of a picture that the model sees, for fit crop. Training takes its random crops from
    the whole central square. None: as others trained the initial weights, else .875."""
    filter: Literal["bicubic", "bilinear"] | None = field(default=None, metadata={EARLIER: "bicubic"})
    """Filter that resizes pictures. None: as others trained the initial weights, else bicubic."""
    validation_fraction: float | None = None
    """Share of the training pictures of each class to hold out for validation. None: a tenth, or nothing if the source
    has its own validation pictures."""
    split_seed: int = 0
    """Seed that chooses which pictures are held out."""
    allow_leaks: bool = False
    """Go on though some validation pictures have the same pixels as training pictures, also of the initial weights or
    of the model that is measured, which makes the accuracy too high."""

    def __post_init__(self) -> None:
        _check_finite(self, "data.")
        _check(self.image_size >= 8, "data.image_size", self.image_size, "at least 8")
        is_cropped = self.fit == "crop" or (self.fit is None and self.image_size >= CROP_FROM)
        _check(self.crop is None or is_cropped, "data.crop", self.crop, "left out unless data.fit is crop")
        _check(self.crop is None or 0.25 <= self.crop <= 1, "data.crop", self.crop, "from .25 to 1")
        fraction = self.validation_fraction
        _check(
            fraction is None or 0 < fraction < 1, "data.validation_fraction", fraction, "between 0 and 1, both excluded"
        )
        _check(
            self.archive is None or self.source == "tiny_imagenet",
            "data.archive",
            self.archive,
            "left out unless data.source is tiny_imagenet (a zip of class folders goes in data.source itself)",
        )
        _check(self.split_seed >= 0, "data.split_seed", self.split_seed, "0 or more")

    def resolved(self, *, crop: float = CROP, filter: Literal["bicubic", "bilinear"] = "bicubic") -> "DataConfig":
        """Returns these settings with `fit` and `filter` decided, and `crop` if pictures are cropped.

        Args:
          crop: the share to crop if the settings do not say.
          filter: the filter if the settings do not say.
        """
        fit = self.fit or ("crop" if self.image_size >= CROP_FROM else "stretch")
        share = self.crop or (crop if fit == "crop" else None)
        if (fit, share, self.filter or filter) == (self.fit, self.crop, self.filter):
            return self
        return dataclasses.replace(self, fit=fit, crop=share, filter=self.filter or filter)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, and the arithmetic it computes in."""

    name: ModelName = "resnet"
    """`resnet` has the shape that widths, blocks, stem and preactivation give it; the other networks are fixed."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage (resnet only)."""
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    """Residual blocks of each stage (resnet only)."""
    stem: int = 2
    """Side of the patches that the first layer folds into channels; 1 keeps the full resolution (resnet only)."""
    preactivation: bool = False
    """Normalise and activate before each convolution of a block, not after (resnet only)."""
    dropout: float = 0.0
    """Share of the pooled features that training drops before the classifier (resnet only)."""
    inference_side: int | None = None
    """Side in pixels that the network resizes pictures to, except in training; None keeps their size (resnet only). A
    network trained with random resized crops has seen objects enlarged and blurred: for it, 1.25 times the last
    training resolution is a good value."""
    pooling: Literal["last", "all"] = "last"
    """What the classifier sees: `last` is the mean of each channel after the last layer; `all` adds mean and deviation
    of each channel after the blocks of that and of twice that resolution. They help a fitted classifier with pictures
    unlike the training pictures of the initial weights (Head2Toe, Evci et al. 2022)."""
    pixel_mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue, from 0 to 255, that the network subtracts from pictures; None is its own constant.
    Initial weights bring the mean that they were trained with."""
    pixel_std: tuple[float, float, float] | None = None
    """Standard deviation of red, green and blue that it then divides by; None is its own constant."""
    norm_group: int | None = None
    """Pictures over which batch normalisation takes its statistics in training; None: the whole batch. Devices that
    compute whole groups exchange no statistics."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Data type that the layers compute in; parameters and batch statistics are always float32. `auto` is bfloat16 on
    GPUs, TPUs, and CPUs on which a short measurement shows that it is faster, else float32."""
    cpu_kernels: bool = True
    """Use kernels written for x86 CPUs, several times as fast as JAX's own. No effect elsewhere than on Linux with an
    x86 CPU as the only device."""

    def __post_init__(self) -> None:
        _check_finite(self, "model.")
        # The options of a resnet would have no effect on a fixed network.
        if self.name != "resnet":
            for name in ("widths", "blocks", "stem", "preactivation", "dropout", "inference_side"):
                default = ModelConfig.__dataclass_fields__[name].default
                value = getattr(self, name)
                _check(value == default, f"model.{name}", value, f"left out: the network {self.name!r} is fixed")
        _check(
            self.pooling == "last" or self.name not in ORIGINALS,
            "model.pooling",
            self.pooling,
            f"last: the network {self.name!r} is fixed",
        )
        _check(len(self.widths) > 0 and min(self.widths) > 0, "model.widths", self.widths, "positive numbers")
        _check(
            len(self.blocks) == len(self.widths) and min(self.blocks) >= 0,
            "model.blocks",
            self.blocks,
            f"one number for each of the {len(self.widths)} widths",
        )
        _check(self.stem >= 1, "model.stem", self.stem, "at least 1")
        _check(0 <= self.dropout < 1, "model.dropout", self.dropout, "from 0 to below 1")
        side = self.inference_side
        _check(side is None or side >= 8, "model.inference_side", side, "at least 8, or None")
        group = self.norm_group
        _check(group is None or group >= 2, "model.norm_group", group, "at least 2, or None")
        deviation = self.pixel_std
        _check(deviation is None or min(deviation) > 0, "model.pixel_std", deviation, "three numbers above 0")

    def with_shape_of(self, other: "ModelConfig") -> "ModelConfig":
        """Returns these settings with the fields of `SHAPE` from others; what does not concern parameters stays."""
        shape = {field: getattr(other, field) for field in SHAPE}
        # The fixed networks have no other settings.
        if other.name != "resnet":
            shape |= {"dropout": 0.0, "inference_side": None}
        if other.name in ORIGINALS:
            shape["pooling"] = "last"
        return dataclasses.replace(self, **shape)


PIXELS = ("pixel_mean", "pixel_std")
"""The fields of `ModelConfig` by which a network normalises pictures."""
SHAPE = ("name", "widths", "blocks", "stem", "preactivation", *PIXELS)
"""The fields of `ModelConfig` that determine the parameters, their shapes, and the pictures they are fit for."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to the training pictures, made on the device in every step; 0, None or off does nothing."""

    flip: bool = False
    """Mirror half of the pictures left to right."""
    pad_crop: float = 0.0
    """Shift by up to this share of the side; the border is filled by reflection."""
    crop_scale: tuple[float, float] | None = None
    """Random resized crop: smallest and largest share of the area that is kept, such as `.5 1`."""
    trivial: bool = False
    """TrivialAugment: change each picture by one random operation of random strength, such as a rotation, a shear or
    more contrast. For photographs; it does not know which changes leave the class of a digit or a symbol as it is."""
    erase: float = 0.0
    """Probability that a random rectangle is replaced by noise."""
    mixup: float = 0.0
    """Blend pairs of pictures: alpha of the Beta distribution of their weights. With cutmix as well, each batch gets
    one of the two."""
    cutmix: float = 0.0
    """Paste a rectangle of another picture: alpha of the Beta distribution of its area."""
    mix_until: float = 1.0
    """Share of the epochs with mixup and cutmix. The last epochs, without, adapt the network to whole pictures."""
    brightness: float = 0.0
    """Largest relative change of brightness."""
    contrast: float = 0.0
    """Largest relative change of contrast."""
    saturation: float = 0.0
    """Largest relative change of saturation."""

    def __post_init__(self) -> None:
        _check_finite(self, "augment.")
        _check(0 <= self.pad_crop < 1, "augment.pad_crop", self.pad_crop, "from 0 to below 1")
        if self.crop_scale is not None:
            low, high = self.crop_scale
            _check(0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "two shares, 0 < low <= high <= 1")
        _check(0 <= self.erase <= 1, "augment.erase", self.erase, "from 0 to 1")
        for name in ("mixup", "cutmix"):
            _check(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "0 or more")
        _check(0 <= self.mix_until <= 1, "augment.mix_until", self.mix_until, "from 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            _check(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, the schedule of its learning rate, and the moving average of the parameters."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """`sgd` has Nesterov momentum; `muon` trains the kernels of convolutions and dense layers, and Adam all else."""
    learning_rate: float = 0.1
    """Highest learning rate of the schedule. About .1 suits sgd, .01 muon, .001 adam and adamw."""
    schedule: Literal["constant", "linear", "cosine", "onecycle"] = "linear"
    """How the learning rate falls to zero after the warm-up; `onecycle` rises and falls along cosines, `constant` does
    not fall."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from near zero to its highest."""
    momentum: float = 0.9
    """Momentum of sgd and muon; decay of the first moment of adam and adamw."""
    weight_decay: float = 0.0
    """Weight decay of kernels; norms and biases have none. sgd and adam add it to the gradient, adamw and muon decouple
    it."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None does not clip it."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of parameters and batch statistics, which is evaluated and exported in their
    place; 0 keeps no average."""

    def __post_init__(self) -> None:
        _check_finite(self, "optim.")
        _check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        _check(0 <= self.warmup <= 1, "optim.warmup", self.warmup, "from 0 to 1")
        _check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "from 0 to below 1")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _check(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0")
        _check(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "from 0 to below 1")


MAX_START_SECONDS = 7 * 86_400
"""A week; timers take no number of any size."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a run is spread over processes and devices. But for rounding, its result does not depend on it."""

    coordinator: str | None = None
    """HOST:PORT of the first of several processes, with a free port, the same for all. None: one process, or as Slurm,
    Open MPI, a Kubernetes JobSet or a TPU slice has started it. `auto`: as JAX detects it."""
    num_processes: int | None = None
    """Number of processes; only with the address of a coordinator."""
    process_id: int | None = None
    """Number of this process, from 0; only with the address of a coordinator."""
    start_seconds: int = 120
    """Time in which all processes have to be started. If one is missing then, all others end with status 75."""
    fsdp: int = 1
    """Devices among which each copy of the parameters, the optimizer's state and the average is divided. With 1, every
    device has a copy of all."""
    accumulate: int = 1
    """Parts of a batch whose gradients are computed one after the other and added, which takes less memory. Networks
    with batch normalisation need model.norm_group. Dropout draws other numbers."""
    remat: bool = False
    """Keep only the results of convolutions and matrix products for the backward pass, and compute the rest again,
    which takes less memory and more time."""

    def __post_init__(self) -> None:
        by_hand = self.coordinator not in (None, "auto")
        host, _, port = (self.coordinator or "").rpartition(":")
        _check(
            not by_hand or (host != "" and port.isdigit()),
            "parallel.coordinator",
            self.coordinator,
            "HOST:PORT of the first process, or auto",
        )
        for name in ("num_processes", "process_id"):
            value = getattr(self, name)
            rule = "given" if by_hand else "left out without parallel.coordinator HOST:PORT"
            _check((value is not None) == by_hand, f"parallel.{name}", value, rule)
        if self.num_processes is not None and self.process_id is not None:
            _check(self.num_processes >= 1, "parallel.num_processes", self.num_processes, "at least 1")
            last = self.num_processes - 1
            _check(0 <= self.process_id <= last, "parallel.process_id", self.process_id, f"from 0 to {last}")
        seconds = self.start_seconds
        _check(1 <= seconds <= MAX_START_SECONDS, "parallel.start_seconds", seconds, f"from 1 to {MAX_START_SECONDS}")
        _check(self.fsdp >= 1, "parallel.fsdp", self.fsdp, "at least 1")
        _check(self.accumulate >= 1, "parallel.accumulate", self.accumulate, "at least 1")

    def joined(self) -> "ParallelConfig":
        """Returns what is recorded of these settings: all but how processes join, which changes between sessions."""
        fresh = ParallelConfig()
        names = ("coordinator", "num_processes", "process_id", "start_seconds")
        return dataclasses.replace(self, **{name: getattr(fresh, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Teachers: trained classifiers whose predictions the network learns beside the labels."""

    teachers: tuple[str, ...] = ()
    """Classifiers of the same classes: workdirs, .safetensors files or .onnx files. They see the very pictures of each
    step, at the side that they were trained for; the mean of their probabilities is learned."""
    weight: float = 0.5
    """Share of the teachers in the loss; the labels have the rest. No effect without teachers."""
    temperature: float = 1.0
    """Divides the logits of teachers and network in the teachers' share of the loss: a higher one teaches more about
    classes that are improbable. No effect without teachers."""

    def __post_init__(self) -> None:
        _check_finite(self, "distill.")
        _check(0 < self.weight <= 1, "distill.weight", self.weight, "above 0 and at most 1")
        _check(self.temperature > 0, "distill.temperature", self.temperature, "above 0")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where a run is logged besides its workdir. A server that fails never stops or delays the training."""

    mlflow: str | None = None
    """Address of an MLflow server, such as http://127.0.0.1:5000, or a local store, such as sqlite:///mlflow.db."""
    wandb: str | None = None
    """Project of Weights & Biases."""

    def __post_init__(self) -> None:
        for name in ("mlflow", "wandb"):
            _check(getattr(self, name) != "", f"log.{name}", getattr(self, name), "left out, or not empty")
        # An address is shown where others see it, such as in the list of processes.
        if "@" in (self.mlflow or "").partition("://")[2].partition("/")[0]:
            raise UserError(
                "log.mlflow has a user in its address; leave it out, and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )


MAX_EPOCHS = 1_000_000
"""More would be a typing error: steps are counted in 32 bits, which leaves 2,147 steps for each of a million epochs."""

MAX_SEED = 2**32 - 1
"""JAX keys wrap around: a larger seed gives the key of a smaller one."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)
    init_from: str | None = None
    """Initial weights: `shipped` (included, trained on Tiny ImageNet), the name of a network that others trained on
    ImageNet (`efficientnet_lite0`, 1 or 2, or `timm:NAME` from Hugging Face's hub; the table of networks is in
    jaxcnn/models/README.md), a .safetensors file, the workdir of a run, or a file of timm or torchvision
    (.safetensors, .pth). None: random. The network gets the shape of the weights. Its classifier is kept if the classes
    are the same."""
    freeze: Literal["none", "backbone"] = "none"
    """Part of the network that keeps its initial weights. `backbone`: all but the classifier, which is fitted as by
    fit_head; no training steps follow, so that epochs and the optimizer have no effect."""
    fit_head: bool = False
    """Before the first step, fit a new classifier to the features of the initial weights: logistic regression, whose
    regularisation is chosen by cross-validation on the training pictures."""
    epochs: int = 30
    """How many times every training picture is seen."""
    batch_size: int = 64
    """Number of pictures in a step."""
    resolutions: tuple[tuple[float, int], ...] = ()
    """Progressive resizing: pairs of a share of the epochs and the side in pixels from there on, such as `0 48 .8 64`.
    Empty: data.image_size throughout."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes."""
    balance: bool = False
    """Let all classes count the same, however many pictures each has: steps draw them equally often, and a fitted
    classifier weighs its pictures accordingly."""
    early_stopping: int | None = None
    """End after so many epochs without a better validation top-1; None: never. It saves time, but the last epochs of a
    schedule, with low learning rates, often gain most."""
    seed: int = 0
    """Seed of the initial parameters, the order of the pictures, and their augmentation."""
    checkpoint_minutes: float = 10.0
    """Longest time between checkpoints in minutes; every epoch ends with one, too."""

    def __post_init__(self) -> None:
        _check_finite(self)
        _check(
            self.init_from != "",
            "init_from",
            self.init_from,
            "`shipped`, `efficientnet_lite0`, a .safetensors file or a workdir",
        )
        frozen = self.freeze == "backbone"
        _check(not frozen or self.init_from is not None, "freeze", self.freeze, "none without init_from")
        _check(not self.fit_head or self.init_from is not None, "fit_head", self.fit_head, "off without init_from")
        teachers = self.distill.teachers
        _check(not (frozen and teachers), "distill.teachers", teachers, "left out with freeze backbone: nothing learns")
        _check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _check(self.epochs <= MAX_EPOCHS, "epochs", self.epochs, f"at most {MAX_EPOCHS:,}")
        _check(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        # Each epoch has one resolution, from the first on.
        starts = [start for start, _ in self.resolutions]
        _check(
            not starts or (starts[0] == 0 and starts == sorted(set(starts)) and starts[-1] < 1),
            "resolutions",
            self.resolutions,
            "pairs (share, side) whose shares rise from 0 to below 1",
        )
        _check(all(side >= 8 for _, side in self.resolutions), "resolutions", self.resolutions, "sides of at least 8")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")
        patience = self.early_stopping
        _check(patience is None or patience >= 1, "early_stopping", patience, "at least 1, or None")
        _check(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"from 0 to {MAX_SEED}")
        _check(self.checkpoint_minutes > 0, "checkpoint_minutes", self.checkpoint_minutes, "above 0")

    def with_model(self, name: str | None) -> "Config":
        """Returns these settings with another network in its default shape; without a known name the same network."""
        if name == self.model.name or name not in get_args(ModelName):
            return self
        return dataclasses.replace(self, model=ModelConfig(name=cast(ModelName, name), precision=self.model.precision))

    def without_weights(self) -> "Config":
        """Returns these settings without initial weights, and without what needs them."""
        return dataclasses.replace(self, init_from=None, freeze="none", fit_head=False)

    @property
    def is_frozen(self) -> bool:
        """Whether all but the classifier keeps its initial weights, so that no steps are taken."""
        return self.freeze == "backbone"

    @property
    def mirrors(self) -> bool:
        """Whether steps are taken with mirrored pictures: the model then cannot tell left from right."""
        return self.augment.flip and not self.is_frozen

    def recorded(self) -> "Config":
        """Returns what is recorded of these settings: all but addresses, which change from session to session."""
        return dataclasses.replace(self, parallel=self.parallel.joined(), log=LogConfig())

    def fit_batch(self, *, count: int, devices: int) -> int:
        """Returns the batch size that a run begins with: one larger than the training split is reduced to all of it.

        A frozen run keeps the given one, as features are computed for each picture alone.

        Args:
          count: number of training pictures.
          devices: number of devices, which share a batch equally.
        """
        largest = max(count // devices, 1) * devices
        return self.batch_size if self.is_frozen or largest < 2 else min(self.batch_size, largest)

    def resolution(self, epoch: int) -> int:
        """Returns the side in pixels of the training pictures in an epoch, counted from 0.

        Shares are rounded to whole epochs, but the last epoch always has the last side.
        """
        side = self.data.image_size
        for start, size in self.resolutions:
            if epoch >= min(round(start * self.epochs), self.epochs - 1):
                side = size
        return side

    def augmentation(self, epoch: int) -> AugmentConfig:
        """Returns the changes to the training pictures in an epoch, counted from 0."""
        if epoch < round(self.augment.mix_until * self.epochs):
            return self.augment
        return dataclasses.replace(self.augment, mixup=0.0, cutmix=0.0)


def to_json(config: Config) -> str:
    """Returns the settings as indented JSON, with every field."""
    return json.dumps(dataclasses.asdict(config), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> Config:
    """Reads the settings that `to_json` wrote.

    A missing field has its default: a run may be older than a setting.

    Raises:
      UserError: a field is unknown, or its value is of another type or invalid; the field is named by its path.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the settings are not JSON: {error}") from error
    return decode(Config, value, "config")


def _check_finite(config: Any, prefix: str = "") -> None:
    """Raises UserError if a field is infinite or NaN, which JSON cannot express."""
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        _check(_is_finite(value), f"{prefix}{setting.name}", value, "finite")


def _is_finite(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check(valid: bool, name: str, value: object, rule: str) -> None:
    """Raises UserError if a value is not valid, with the rule that it breaks."""
    if not valid:
        raise UserError(f"{name} is {value!r}; it must be {rule}")
