"""How a run trains, in words: a few phrases for each part of the settings."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxcnn.config import AugmentConfig, Config, ModelConfig, OptimConfig
from jaxcnn.paths import readable


def describe_network(config: ModelConfig) -> str:
    """The network's shape; the fixed ones have but their name."""
    if config.name != "resnet":
        return config.name
    stages = [
        f"{_listed(values)} {noun if values == (1,) else noun + 's'}"
        for values, noun in ((config.widths, "channel"), (config.blocks, "residual block"))
    ]
    return _joined(
        f"resnet, stages of {' with '.join(stages)}",
        f"patches of {config.stem}x{config.stem} pixels folded into channels first" if config.stem > 1 else "",
        "normalised and activated before each convolution" if config.preactivation else "",
        f"dropout {config.dropout:g} before the last layer" if config.dropout else "",
        f"pictures resized to {config.inference_side} pixels inside it, but in training"
        if config.inference_side
        else "",
    )


def describe_precision(config: ModelConfig, environment: Mapping[str, str]) -> str:
    """What the layers computed in; `auto` was decided by the machine.

    Args:
      environment: as `Workdir.record` writes it; older ones do not tell the precision.
    """
    if config.precision != "auto":
        return config.precision
    return environment.get("precision", "bfloat16 if the machine is made for it, else float32")


def describe_training(config: Config, *, steps_per_epoch: int | None) -> str:
    """How long, in which batches, at which sizes, towards which targets."""
    sizes = [(side, len(list(epochs))) for side, epochs in itertools.groupby(range(config.epochs), config.resolution)]
    return _joined(
        counted(config.epochs, "epoch") + (f" of {counted(steps_per_epoch, 'step')}" if steps_per_epoch else ""),
        ", then ".join(f"{count} at {side} pixels" for side, count in sizes)
        if len(sizes) > 1
        else f"{sizes[0][0]} pixels",
        f"{config.batch_size} pictures in each step",
        f"label smoothing {config.label_smoothing:g}" if config.label_smoothing else "",
        f"seed {config.seed}",
        f"starting from the weights of an earlier training, {readable(Path(config.init_from).name)}"
        if config.init_from
        else "",
    )


def describe_optimizer(config: OptimConfig) -> str:
    """The optimizer with what it was set to."""
    return _joined(
        config.name,
        f"learning rate {config.learning_rate:g}",
        f"{config.schedule} schedule" + (f" after {config.warmup:.0%} warm-up" if config.warmup else ""),
        f"momentum {config.momentum:g}",
        f"weight decay {config.weight_decay:g}" if config.weight_decay else "",
        f"gradients clipped at {config.clip_norm:g}" if config.clip_norm else "",
        f"parameters averaged with decay {config.ema_decay:g}" if config.ema_decay else "",
    )


def describe_augmentation(config: AugmentConfig) -> str:
    """What is done to the training pictures; `none` if nothing is."""
    crop = config.crop_scale
    mixed = config.mix_until > 0
    changes = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation")}
    return (
        _joined(
            "mirrored half of the time" if config.flip else "",
            f"shifted by up to {_percent(config.pad_crop)} of the side" if config.pad_crop else "",
            f"cropped to {_percent(crop[0])} to {_percent(crop[1])} of the area" if crop else "",
            f"a rectangle erased in {_percent(config.erase)} of them" if config.erase else "",
            f"mixup {config.mixup:g}" if mixed and config.mixup else "",
            f"cutmix {config.cutmix:g}" if mixed and config.cutmix else "",
            f"mixed only in the first {_percent(config.mix_until)} of the epochs"
            if (config.mixup or config.cutmix) and 0 < config.mix_until < 1
            else "",
            *(f"{name} changed by up to {_percent(value)}" for name, value in changes.items() if value),
        )
        or "none"
    )


def describe_hardware(environment: Mapping[str, str]) -> str:
    """The devices, and the processor beside them."""
    return "{devices}; {processor}, ".format_map(environment) + counted(int(environment["cores"]), "core")


def describe_software(environment: Mapping[str, str]) -> str:
    """The versions that a result depends on most."""
    return "jax {jax}, flax {flax}, optax {optax}, Python {python}".format_map(environment)


def counted(count: int, noun: str) -> str:
    """Such as `1 step` or `1,390 steps`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _joined(*phrases: str) -> str:
    return ", ".join(filter(None, phrases))


def _listed(values: Iterable[int]) -> str:
    *rest, last = map(str, values)
    return f"{', '.join(rest)} and {last}" if rest else last


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
