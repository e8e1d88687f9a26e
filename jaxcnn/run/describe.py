"""Describes the settings and the machine of a run in words, one line for each part."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxcnn.config import AugmentConfig, Config, DataConfig, DistillConfig, ModelConfig, OptimConfig
from jaxcnn.data.resize import Resize
from jaxcnn.paths import readable
from jaxcnn.run.metrics_log import HeadRecord


def describe_network(config: ModelConfig) -> str:
    """Describes the layers of a `resnet`, and other networks by their names: their layers are fixed."""
    pixels = _joined(
        *(
            f"{phrase} {', '.join(f'{value:g}' for value in values)} for red, green and blue"
            for phrase, values in (("subtracts", config.pixel_mean), ("divides by", config.pixel_std))
            if values
        )
    )
    pooled = "classifier of mean and deviation of each channel after several blocks" if config.pooling == "all" else ""
    grouped = f"batch statistics over {config.norm_group} pictures each" if config.norm_group else ""
    if config.name != "resnet":
        return _joined(config.name, grouped, pooled, pixels)
    # Numbers stand in the order of the stages: "64 and 128 channels with 1 and 2 residual blocks".
    stages = [
        f"{_listed(values)} {noun if values == (1,) else noun + 's'}"
        for values, noun in ((config.widths, "channel"), (config.blocks, "residual block"))
    ]
    return _joined(
        f"resnet, stages of {' with '.join(stages)}",
        f"stem folds {config.stem}x{config.stem} pixels into channels" if config.stem > 1 else "",
        "pre-activation" if config.preactivation else "",
        f"dropout {config.dropout:g} before the last layer" if config.dropout else "",
        f"resizes its input to {config.inference_side}x{config.inference_side} pixels at inference"
        if config.inference_side
        else "",
        grouped,
        pooled,
        pixels,
    )


def describe_precision(config: ModelConfig, environment: Mapping[str, str]) -> str:
    """Describes what the layers computed in. The machine decides it if the setting is `auto`.

    Args:
      environment: as `Workdir.record` writes it. Runs of earlier versions did not record the precision.
    """
    if config.precision != "auto":
        return config.precision
    return environment.get("precision", "bfloat16 if the machine has instructions for it, else float32")


def describe_fit(config: DataConfig) -> str:
    """Describes how pictures that are not square became so; empty if they were stretched."""
    resize, size = Resize.of(config), config.image_size
    stored = resize.stored(size)
    if resize.mode == "crop":
        return "the central square" if stored == size else f"the middle of central squares of {stored}x{stored}"
    return "the whole picture between gray bars" if resize.mode == "pad" else ""


def describe_training(config: Config, *, steps_per_epoch: int | None) -> str:
    """Describes length, batch size, resolutions, targets and seed.

    Args:
      steps_per_epoch: None if it is not known yet.
    """
    balanced = "classes balanced" if config.balance else ""
    start = f"initial weights from {readable(Path(config.init_from).name)}" if config.init_from else ""
    if config.is_frozen:
        side = config.data.image_size
        return _joined("no training steps: all but the classifier is frozen", f"{side}x{side} pixels", balanced, start)
    # Epochs in a row at the same resolution.
    stages = [(side, len(list(epochs))) for side, epochs in itertools.groupby(range(config.epochs), config.resolution)]
    return _joined(
        counted(config.epochs, "epoch") + (f" of {counted(steps_per_epoch, 'step')}" if steps_per_epoch else ""),
        f"batch size {config.batch_size}",
        ", then ".join(f"{count} at {side}x{side} pixels" for side, count in stages)
        if len(stages) > 1
        else f"{stages[0][0]}x{stages[0][0]} pixels",
        f"label smoothing {config.label_smoothing:g}" if config.label_smoothing else "",
        describe_teachers(config.distill),
        balanced,
        f"ends after {counted(config.early_stopping, 'epoch')} without a better validation top-1"
        if config.early_stopping
        else "",
        f"seed {config.seed}",
        start,
    )


def describe_teachers(config: DistillConfig) -> str:
    """Describes what is learned from teachers; empty if there are none."""
    if not config.teachers:
        return ""
    *others, last = [readable(Path(teacher).name) for teacher in config.teachers]
    names = f"{', '.join(others)} and {last}" if others else last
    return (
        f"{_percent(config.weight)} of the loss from the predictions of {names} at temperature {config.temperature:g}"
    )


def describe_head(head: HeadRecord) -> str:
    """Describes the classifier that was fitted before the first step, and how it was chosen."""
    chosen = (
        "the strongest, as there was nothing to cross-validate with"
        if head.top1 is None
        else f"the best in cross-validation on the training pictures (top-1 {head.top1:.3f})"
    )
    return (
        "fitted to the features of the initial weights before the first step: logistic regression on "
        f"{'standardised' if head.standardised else 'equally scaled'} features with penalty {head.strength:.2g} for "
        f"each picture and feature, {chosen}"
    )


def describe_optimizer(config: OptimConfig) -> str:
    """Describes the optimizer, its learning rate schedule and its regularisation."""
    return _joined(
        config.name,
        f"learning rate {config.learning_rate:g}",
        f"{config.schedule} schedule" + (f" after {config.warmup:.0%} warm-up" if config.warmup else ""),
        f"momentum {config.momentum:g}",
        f"weight decay {config.weight_decay:g}" if config.weight_decay else "",
        f"gradients clipped at {config.clip_norm:g}" if config.clip_norm else "",
        f"exponential moving average of the weights with decay {config.ema_decay:g}" if config.ema_decay else "",
    )


def describe_augmentation(config: AugmentConfig) -> str:
    """Describes the random changes to training pictures; `none` if there are none."""
    crop = config.crop_scale
    mixed = config.mix_until > 0
    jitter = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation")}
    return (
        _joined(
            "horizontal flips" if config.flip else "",
            f"shifts by up to {_percent(config.pad_crop)} of the side" if config.pad_crop else "",
            f"random resized crops of {ranged(*map(_percent, crop))} of the area" if crop else "",
            "TrivialAugment" if config.trivial else "",
            f"random erasing with probability {config.erase:g}" if config.erase else "",
            f"mixup {config.mixup:g}" if mixed and config.mixup else "",
            f"cutmix {config.cutmix:g}" if mixed and config.cutmix else "",
            f"mixing only in the first {_percent(config.mix_until)} of the epochs"
            if (config.mixup or config.cutmix) and 0 < config.mix_until < 1
            else "",
            *(f"{name} ±{_percent(value)}" for name, value in jitter.items() if value),
        )
        or "none"
    )


def describe_hardware(environment: Mapping[str, str]) -> str:
    """Describes the accelerators, if there are any, and the processor."""
    processor = f"{environment['processor']}, {counted(int(environment['cores']), 'core')}"
    return processor if set(environment["devices"].split(", ")) == {"cpu"} else f"{environment['devices']}; {processor}"


def describe_software(environment: Mapping[str, str]) -> str:
    """Lists the versions of the packages that a result depends on most."""
    ours = f"jaxcnn {environment['jaxcnn']}, " if "jaxcnn" in environment else ""  # Earlier versions recorded none.
    return ours + "jax {jax}, flax {flax}, optax {optax}, Python {python}".format_map(environment)


def ranged(low: str, high: str) -> str:
    """Formats a range, such as `8% to 100%`; one value if both ends are equal."""
    return low if low == high else f"{low} to {high}"


def counted(count: int, noun: str) -> str:
    """Formats a count and its noun, such as `1 step` or `1,390 steps`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _joined(*phrases: str) -> str:
    return ", ".join(filter(None, phrases))


def _listed(values: Iterable[int]) -> str:
    *rest, last = map(str, values)
    return f"{', '.join(rest)} and {last}" if rest else last


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
