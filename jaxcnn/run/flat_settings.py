"""The settings of a run by the names of their options: which may change, and which differ from others."""

import dataclasses
from collections.abc import Container, Iterable, Iterator
from typing import Any

from jaxcnn.config import Config, ModelConfig

WITHOUT_EFFECT = (
    "data.source",
    "data.archive",
    "data.cache_dir",
    "data.allow_leaks",
    "model.cpu_kernels",
    "parallel.coordinator",
    "parallel.num_processes",
    "parallel.process_id",
    "parallel.fsdp",
    "parallel.accumulate",
    "parallel.remat",
    "checkpoint_minutes",
    "early_stopping",
)
"""Settings that do not change what is trained: a finished run may be started again with other values of them."""


def flat_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all settings with the names of their options."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat_settings(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def find_change(was: Config, now: Config, *, ignored: Container[str] = WITHOUT_EFFECT) -> str | None:
    """Describes the first setting that differs, such as `epochs 5, not 9`; None if all are the same but the ignored."""
    return _first_change(was, now, (name for name, _ in flat_settings(was) if name not in ignored))


def find_fixed_change(was: Config, now: Config) -> str | None:
    """Describes the first setting that differs, and that has to stay the same for all of a run; None without one."""
    return _first_change(was, now, _fixed_settings())


def _first_change(was: Config, now: Config, names: Iterable[str]) -> str | None:
    old, new = dict(flat_settings(was)), dict(flat_settings(now))
    return next((f"{name} {old[name]!r}, not {new[name]!r}" for name in names if old[name] != new[name]), None)


def _fixed_settings() -> tuple[str, ...]:
    """The settings that stay the same for all of a run."""
    # These two say how the network is computed, not which network it is.
    model = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in ("precision", "cpu_kernels")]
    return (
        "init_from",
        "freeze",
        "fit_head",
        "balance",
        "distill.teachers",
        *(f"model.{name}" for name in model),
        "batch_size",
        "seed",
        "data.image_size",
        "data.fit",
        "data.crop",
        "data.filter",
        "data.validation_fraction",
        "data.split_seed",
    )
