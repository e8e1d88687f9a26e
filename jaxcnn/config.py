"""The settings of a run: one frozen dataclass per component, presets as functions, JSON both ways.

Standard library only, so that anything may read a run's settings. The docstring below a field is its
help text on the command line, where its lines stay as they are broken here: at the end of a sentence.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxcnn.errors import UserError

ModelName = Literal[
    "resnet", "seed", "prototype1", "prototype2", "prototype3", "prototype4", "prototype5", "prototype6"
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pictures come from, and how they become arrays."""

    source: str = "digits"
    """`digits` (embedded), `tiny_imagenet`, `tfds:NAME`, or the path of a folder or zip with one folder per class."""
    archive: str | None = None
    """Tiny ImageNet's zip on disk; without it the zip is downloaded."""
    cache_dir: str = "~/.cache/jaxcnn"
    """Where downloads and decoded pictures are kept."""
    image_size: int = 32
    """Side in pixels of the decoded square pictures; the exported model takes this size."""
    validation_fraction: float | None = None
    """Share of the training pictures held out for validation, the same in every class.
    None: the source's own validation pictures, or a tenth where it has none."""
    split_seed: int = 0
    """Chooses which pictures are held out."""

    def __post_init__(self) -> None:
        _check_finite(self, "data.")
        _check(self.image_size >= 8, "data.image_size", self.image_size, "at least 8")
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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and the arithmetic it computes in."""

    name: ModelName = "resnet"
    """`resnet` takes its shape from widths, blocks, stem and preactivation; the others are fixed."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage (resnet only)."""
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    """Residual blocks in each stage (resnet only)."""
    stem: int = 2
    """Side of the patch that the first layer folds into channels; 1 keeps full resolution (resnet only)."""
    preactivation: bool = False
    """Normalise and activate before each convolution of a block instead of after (resnet only)."""
    dropout: float = 0.0
    """Share of the pooled features dropped before the classifier (resnet only)."""
    inference_side: int | None = None
    """Side to which the network itself resizes pictures when it is not training; None leaves them (resnet only).
    A random resized crop enlarges what it shows, and blurs it: where it does, 1.25 times the last resolution suits."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """What the layers compute in; parameters and batch statistics are always float32.
    `auto` is bfloat16 on GPUs and TPUs, and on processors that have instructions for it."""
    cpu_kernels: bool = True
    """On Linux with an x86 processor, compute by kernels made for it, which are several times as fast.
    No effect elsewhere, nor with several devices."""

    def __post_init__(self) -> None:
        _check_finite(self, "model.")
        if self.name != "resnet":
            for each in ("widths", "blocks", "stem", "preactivation", "dropout", "inference_side"):
                default = ModelConfig.__dataclass_fields__[each].default
                value = getattr(self, each)
                _check(value == default, f"model.{each}", value, f"left out: the network {self.name!r} is fixed")
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

    def with_shape_of(self, other: "ModelConfig") -> "ModelConfig":
        """The network of other settings, as far as its parameters go; how it is trained and computed stays."""
        shape = {each: getattr(other, each) for each in SHAPE}
        if other.name != "resnet":  # the fixed networks have nothing else to set
            shape |= {"dropout": 0.0, "inference_side": None}
        return dataclasses.replace(self, **shape)


SHAPE = ("name", "widths", "blocks", "stem", "preactivation")
"""The fields of `ModelConfig` that decide which parameters there are, and their shapes."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to the training pictures, made on the device inside the step. Zero or false is off."""

    flip: bool = False
    """Mirror left and right, half of the time."""
    pad_crop: float = 0.0
    """Shift by up to this share of the side, the border filled by reflection."""
    crop_scale: tuple[float, float] | None = None
    """Random resized crop: smallest and largest share of the area kept."""
    erase: float = 0.0
    """Chance that a random rectangle is filled with noise."""
    mixup: float = 0.0
    """Blend pairs of pictures; the parameter of the Beta distribution. With cutmix too, one of them for each batch."""
    cutmix: float = 0.0
    """Paste a rectangle of another picture; the parameter of the Beta distribution."""
    mix_until: float = 1.0
    """Share of the epochs with mixup and cutmix. The last ones without let the network settle on whole pictures."""
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
        for each in ("mixup", "cutmix"):
            _check(getattr(self, each) >= 0, f"augment.{each}", getattr(self, each), "0 or more")
        _check(0 <= self.mix_until <= 1, "augment.mix_until", self.mix_until, "from 0 to 1")
        for each in ("brightness", "contrast", "saturation"):
            _check(0 <= getattr(self, each) <= 1, f"augment.{each}", getattr(self, each), "from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its learning rate over time, and what is averaged."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """`sgd` is Nesterov's; `muon` uses Adam for all but the convolution and dense kernels."""
    learning_rate: float = 0.1
    """The highest rate of the schedule. About .1 suits sgd, .01 muon, .001 adam and adamw."""
    schedule: Literal["constant", "linear", "cosine", "onecycle"] = "linear"
    """How the rate falls to zero after the warm-up; `onecycle` rises and falls along cosines, `constant` stays."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises from near zero."""
    momentum: float = 0.9
    """Momentum of sgd and muon; the first moment's decay of adam and adamw."""
    weight_decay: float = 0.0
    """Decay of the kernels; norms and biases are left alone.
    Added to the gradient by sgd and adam, decoupled by adamw and muon."""
    clip_norm: float | None = None
    """Largest global norm of the gradient."""
    ema_decay: float = 0.0
    """Decay, per step, of the average of parameters and batch statistics that is evaluated and exported; 0: none."""

    def __post_init__(self) -> None:
        _check_finite(self, "optim.")
        _check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        _check(0 <= self.warmup <= 1, "optim.warmup", self.warmup, "from 0 to 1")
        _check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "from 0 to below 1")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _check(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "above 0")
        _check(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "from 0 to below 1")


MAX_EPOCHS = 1_000_000
"""More are a slip: steps are counted in 32 bits, and a million passes leave a data set 2,147 steps in each."""

MAX_SEED = 2**32 - 1
"""jax makes the same keys of larger ones again."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init_from: str | None = None
    """Weights to start from: `shipped` (Tiny ImageNet's, which come along), a .safetensors file, or a run's workdir.
    The network has their shape. Its classifier starts anew unless the classes are theirs."""
    epochs: int = 30
    """Passes over the training pictures."""
    batch_size: int = 64
    """Pictures in one step."""
    resolutions: tuple[tuple[float, int], ...] = ()
    """Progressive resizing: pairs of a share of the epochs and the side from there on, such as `0 48 .8 64`.
    Empty: data.image_size throughout."""
    label_smoothing: float = 0.0
    """Share of the target given to all classes alike."""
    seed: int = 0
    """Decides the initial parameters, the order of the pictures, and their augmentation."""
    checkpoint_minutes: float = 10.0
    """Longest time between checkpoints; one is also written after every epoch."""

    def __post_init__(self) -> None:
        _check_finite(self)
        _check(self.init_from != "", "init_from", self.init_from, "`shipped`, a .safetensors file or a workdir")
        _check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _check(self.epochs <= MAX_EPOCHS, "epochs", self.epochs, f"at most {MAX_EPOCHS:,}")
        _check(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        starts = [start for start, _ in self.resolutions]
        _check(
            not starts or (starts[0] == 0 and starts == sorted(set(starts)) and starts[-1] < 1),
            "resolutions",
            self.resolutions,
            "pairs (share, side) whose shares rise from 0 to below 1",
        )
        _check(all(side >= 8 for _, side in self.resolutions), "resolutions", self.resolutions, "sides of at least 8")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")
        _check(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"from 0 to {MAX_SEED}")
        _check(self.checkpoint_minutes > 0, "checkpoint_minutes", self.checkpoint_minutes, "above 0")

    def resolution(self, epoch: int) -> int:
        """Side in pixels of the training pictures in this epoch, counted from 0."""
        side = self.data.image_size
        for start, size in self.resolutions:
            if epoch >= round(start * self.epochs):
                side = size
        return side

    def augmentation(self, epoch: int) -> AugmentConfig:
        """The changes to the training pictures in this epoch, counted from 0."""
        if epoch < round(self.augment.mix_until * self.epochs):
            return self.augment
        return dataclasses.replace(self.augment, mixup=0.0, cutmix=0.0)


def to_json(config: Config) -> str:
    """The settings as indented JSON, with every field."""
    return json.dumps(dataclasses.asdict(config), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> Config:
    """The settings that `to_json` wrote.

    Raises:
      UserError: an unknown field, or a value of the wrong kind, by its path. What is missing has its default: a run
        may be older than a setting.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"the settings are not JSON: {error}") from error
    return typing.cast(Config, _decode(Config, value, "config"))


def _decode(kind: Any, value: Any, path: str) -> Any:
    """Builds a value of the annotated `kind` from parsed JSON."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, path)
    if origin is Literal:
        expected = f"one of {', '.join(map(repr, arguments))}"
        return _checked(value, value in arguments, path, expected)
    if origin is types.UnionType:
        inner = next(each for each in arguments if each is not types.NoneType)
        return None if value is None else _decode(inner, value, path)
    if origin is tuple:
        items = _checked(value, isinstance(value, list), path, "a list")
        kinds = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        _checked(value, len(kinds) == len(items), path, f"{len(kinds)} items")
        return tuple(
            _decode(each, item, f"{path}[{i}]") for i, (each, item) in enumerate(zip(kinds, items, strict=True))
        )
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_checked(value, number and math.isfinite(value), path, "a number"))
    return _checked(value, type(value) is kind, path, f"{kind.__name__}")


def _decode_fields(kind: Any, value: Any, path: str) -> Any:
    fields = typing.get_type_hints(kind)
    _checked(value, isinstance(value, dict), path, "an object")
    for name in value:
        if name not in fields:
            raise UserError(f"{path}.{name} is not a setting; {path} has: {', '.join(fields)}")
    return kind(**{name: _decode(fields[name], each, f"{path}.{name}") for name, each in value.items()})


def _checked(value: Any, valid: bool, path: str, expected: str) -> Any:
    if not valid:
        raise UserError(f"{path} is {value!r}; it must be {expected}")
    return value


def _check_finite(config: Any, prefix: str = "") -> None:
    """Refuses infinity and NaN in every field: no such number can be trained with, and JSON has none."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        _check(_is_finite(value), f"{prefix}{each.name}", value, "finite")


def _is_finite(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check(valid: bool, name: str, value: object, rule: str) -> None:
    if not valid:
        raise UserError(f"{name} is {value!r}; it must be {rule}")
