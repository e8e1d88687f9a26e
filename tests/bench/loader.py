"""Measures whether input keeps up with training: `python -m tests.bench.loader --preset PRESET`.

Prints how many pictures per second the loader gathers alone, from a memory-mapped file as large as that of Tiny
ImageNet, and for what share of the time training steps wait for it. The last line is one JSON object.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jaxcnn.data.batches import Batch, train_batches
from jaxcnn.data.split import Split
from jaxcnn.presets import PRESETS
from tests.bench.train_step import CLASSES
from tests.bench.train_step_jaxcnn import make_step

PICTURES = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny_imagenet")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    config = PRESETS[arguments.preset]()
    side = config.data.image_size
    with tempfile.TemporaryDirectory() as folder:
        images = np.lib.format.open_memmap(
            Path(folder) / "images.npy", "w+", dtype=np.uint8, shape=(PICTURES, side, side, 3)
        )
        rng = np.random.default_rng(0)
        for start in range(0, PICTURES, 1000):
            images[start : start + 1000] = rng.integers(0, 256, (1000, side, side, 3), np.uint8)
        split = Split(images, rng.integers(0, CLASSES, PICTURES, np.int32))
        alone = gather(split, batch=config.batch_size)
        waiting = train(arguments.preset, split, batch=config.batch_size, side=side, steps=arguments.steps)
    print(f"loader alone: {alone:,.0f} images/s; steps wait for it {waiting:.2%} of their time")
    print(json.dumps({"images_per_second": alone, "waiting": waiting}))


def gather(split: Split, *, batch: int) -> float:
    """Returns the pictures per second of one epoch."""
    steps = PICTURES // batch
    begin = time.perf_counter()
    for _ in itertools.islice(train_batches(split, seed=0, batch_size=batch), steps):
        pass
    return steps * batch / (time.perf_counter() - begin)


def train(preset: str, split: Split, *, batch: int, side: int, steps: int) -> float:
    """Returns the share of the time for which training steps wait for their batch."""
    config = PRESETS[preset]()
    step = make_step(preset, model=config.model, batch=batch, resolution=side, precision=None, cpu_kernels=True)
    batches = train_batches(split, seed=0, batch_size=batch)
    waited, begin = 0.0, 0.0
    for number in range(-2, steps):  # the first two compile and warm up
        if number == 0:
            waited, begin = 0.0, time.perf_counter()
        start = time.perf_counter()
        examples: Batch = next(batches)
        waited += time.perf_counter() - start
        jax.block_until_ready(jax.device_put(examples.images))
        step()
    batches.close()
    return waited / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
