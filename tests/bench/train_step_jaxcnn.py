"""jaxcnn's step for `tests.bench.train_step`."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from jaxcnn.config import ModelConfig, OptimConfig
from jaxcnn.models import registry
from jaxcnn.ops.allocator import keep_freed_memory
from jaxcnn.optim import make_optimizer
from jaxcnn.presets import PRESETS
from jaxcnn.state import create_state
from jaxcnn.step import train_step
from tests.bench.train_step import CLASSES

TOTAL_STEPS = 10_000


def make_step(
    preset: str, *, model: ModelConfig, batch: int, resolution: int, precision: str | None, cpu_kernels: bool
) -> Callable[[], None]:
    """A step of the preset's run, but for its optimizer, on random pictures of its size, the same in each step."""
    if cpu_kernels:
        keep_freed_memory()
    config = PRESETS[preset]()
    changes = {"cpu_kernels": cpu_kernels} | ({"precision": precision} if precision else {})
    network = registry.build_here(dataclasses.replace(model, **changes), classes=CLASSES)
    optim = OptimConfig(name="adam") if model.name == "seed" else OptimConfig(name="sgd", weight_decay=5e-4)
    optimizer = make_optimizer(optim, steps=TOTAL_STEPS)
    key = jax.random.key(0)
    state = create_state(key, model=network, optimizer=optimizer, image_size=resolution, averaged=False)
    rng = np.random.default_rng(0)
    side = max(resolution, config.data.image_size)
    images = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
    labels = rng.integers(0, CLASSES, batch, np.int32)

    def step() -> None:
        nonlocal state
        state, metrics = train_step(
            state,
            images,
            labels,
            key,
            model=network,
            optimizer=optimizer,
            augment_config=config.augmentation(config.epochs - 1),
            classes=CLASSES,
            resolution=resolution,
            label_smoothing=config.label_smoothing,
            average_decay=0.0,
        )
        metrics.loss.block_until_ready()

    return step
