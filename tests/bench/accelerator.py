"""Measures training on the accelerator that is here: `python -m tests.bench.accelerator [--smoke]`.

One script for an hour of somebody's GPU or TPU; it needs eight minutes at most, and leaves out what it has no time for.
The last line is one JSON object:

- steps: for each preset images/s, the share of the chip's bfloat16 rate, peak memory, and the share of the time for
  which steps wait for pictures that a thread gathers and JAX copies to the device.
- precision: the same step in bfloat16 and in float32.
- flax: the ResNet-50 of Flax' ImageNet example, in turns with the preset `imagenet`; the step of the latter augments
  pictures as well.
- training: a whole run of `digits`, with its accuracy.

A part that fails has its error in place of figures. With `--smoke` all of this is small, and shows that it works.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.config import Config, ModelConfig
from jaxcnn.data.batches import Batch, train_batches
from jaxcnn.data.resize import Resize
from jaxcnn.data.split import Split
from jaxcnn.lowering import build_step, lower_step
from jaxcnn.presets import PRESETS
from jaxcnn.topology import CHIPS
from jaxcnn.training import train
from tests.bench.accelerator_flax import make_step as make_flax_step

STEPS = {"tiny_imagenet_gpu": 200, "imagenet": 1000, "imagenet_convnext": 1000}
"""The presets whose steps are measured, and the classes of their data."""
KINDS = {"H100": "h100", "H200": "h100", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
"""Chips by what JAX calls them; the arithmetic of an H200 is that of an H100."""
FED_BATCHES = 4
"""Size of the file that steps are fed from, in batches."""

type Take = Callable[[], jax.Array]
"""Takes a step; returns its loss, which need not be computed yet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small networks, few steps: a test of the script")
    parser.add_argument("--minutes", type=float, default=7.5, help="no part begins after this time")
    parser.add_argument("--batch", type=int, help="batch size of all steps, in place of the preset's")
    arguments = parser.parse_args()
    seconds = 0.2 if arguments.smoke else 6.0
    configs = {name: prepare(PRESETS[name](), smoke=arguments.smoke, batch=arguments.batch) for name in STEPS}
    parts: dict[str, Callable[[], Any]] = {
        f"steps {name}": partial(measure_preset, config, classes=STEPS[name], seconds=seconds)
        for name, config in configs.items()
    }
    parts["precision"] = partial(compare_precisions, configs["tiny_imagenet_gpu"], seconds=seconds)
    parts["flax"] = partial(compare_flax, configs["imagenet"], seconds=seconds, smoke=arguments.smoke)
    parts["training"] = partial(train_digits, smoke=arguments.smoke)
    print(json.dumps(run_parts(parts, deadline=time.monotonic() + 60 * arguments.minutes)))


def run_parts(parts: dict[str, Callable[[], Any]], *, deadline: float) -> dict[str, Any]:
    """Runs the parts in order; one that fails has its error, and one that comes too late is left out."""
    device = jax.local_devices()[0]
    results: dict[str, Any] = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
    for name, part in parts.items():
        if time.monotonic() > deadline:
            results[name] = {"skipped": "no time left"}
            continue
        begin = time.monotonic()
        try:
            results[name] = part()
        except Exception as error:  # The figures of the other parts must not be lost.
            results[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(f"{name}, {time.monotonic() - begin:.0f} s: {json.dumps(results[name])}", flush=True)
    return results


def prepare(config: Config, *, smoke: bool, batch: int | None) -> Config:
    """The settings of a preset, for a smoke test with a small network and small pictures."""
    if smoke:
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, image_size=16, fit="stretch", crop=None),
            model=ModelConfig(widths=(8,), blocks=(1,), precision=config.model.precision),
            batch_size=8,
        )
    return dataclasses.replace(config, batch_size=batch or config.batch_size)


def measure_preset(config: Config, *, classes: int, seconds: float) -> dict[str, Any]:
    """The speed of a preset's step, on pictures that are on the device and on pictures from a file."""
    lowered = lower_step(config, classes=classes, mesh=None)
    begin = time.perf_counter()
    compiled = lowered.compile()
    compiling = time.perf_counter() - begin
    memory, flops = compiled.memory_analysis(), lowered.cost_analysis()["flops"]
    resident = config.batch_size / time_step(hold_batch(compiled, config, classes=classes), seconds=seconds)
    fed = config.batch_size / time_fed(compiled, config, classes=classes, seconds=seconds)
    peak = peak_flops()
    return {
        "batch_size": config.batch_size,
        "images_per_second": resident,
        "share_of_peak": resident / config.batch_size * flops / peak if peak else None,
        "step_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "most_bytes_so_far": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "images_per_second_fed": fed,
        "input_stall": max(1 - fed / resident, 0.0),
        "compile_seconds": compiling,
    }


def peak_flops() -> float | None:
    """Operations in bfloat16 a second that the device is specified for; None if it is not known."""
    kind = jax.local_devices()[0].device_kind
    return next((CHIPS[chip].flops for name, chip in KINDS.items() if name in kind), None)


def hold_batch(compiled: jax.stages.Compiled, config: Config, *, classes: int) -> Take:
    """A step on the same random batch every time, which is on the device."""
    (batch,) = itertools.islice(
        train_batches(make_split(config, classes, count=config.batch_size), seed=0, batch_size=config.batch_size), 1
    )
    return feed(compiled, config, classes, itertools.repeat(jax.device_put(batch)))


def feed(compiled: jax.stages.Compiled, config: Config, classes: int, batches: Any) -> Take:
    """A step on the next batch."""
    state = jax.jit(build_step(config, classes=classes, mesh=None).init)(jax.random.key(0))
    key = jax.device_put(jax.random.key(1))

    def take() -> jax.Array:
        nonlocal state
        batch: Batch = next(batches)
        state, metrics = compiled(state, batch.images, batch.labels, key)
        return metrics.loss

    return take


def time_fed(compiled: jax.stages.Compiled, config: Config, *, classes: int, seconds: float) -> float:
    """Seconds of a step on pictures that a thread gathers from a memory-mapped file, as in training."""
    with tempfile.TemporaryDirectory() as folder:
        split = make_split(config, classes, count=FED_BATCHES * config.batch_size, folder=Path(folder))
        batches = train_batches(split, seed=0, batch_size=config.batch_size)
        try:
            return time_step(feed(compiled, config, classes, batches), seconds=seconds)
        finally:
            batches.close()


def make_split(config: Config, classes: int, *, count: int, folder: Path | None = None) -> Split:
    """Random pictures of the size that the preset keeps, in memory or in a file."""
    side = Resize.of(config.data).stored(config.data.image_size)
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (min(count, 64), side, side, 3), np.uint8)
    shape = (count, side, side, 3)
    images = np.empty(shape, np.uint8)
    if folder is not None:
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", dtype=np.uint8, shape=shape)
    for start in range(0, count, len(some)):
        images[start : start + len(some)] = some[: count - start]
    return Split(images, rng.integers(0, classes, count, np.int32), config.data.image_size)


def time_step(take: Take, *, seconds: float) -> float:
    """Seconds of a step on average, after two that warm up; as in training, the host is a step ahead."""
    for _ in range(2):
        take().block_until_ready()
    begin, steps = time.perf_counter(), 0
    before = take()
    while time.perf_counter() - begin < seconds:
        after = take()
        before.block_until_ready()
        before, steps = after, steps + 1
    before.block_until_ready()
    return (time.perf_counter() - begin) / (steps + 1)


def compare_precisions(config: Config, *, seconds: float) -> dict[str, float]:
    """Pictures a second of the same step in bfloat16 and in float32."""
    rates = {}
    for precision in ("bfloat16", "float32"):
        chosen = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
        compiled = lower_step(chosen, classes=200, mesh=None).compile()
        take = hold_batch(compiled, chosen, classes=200)
        rates[precision] = config.batch_size / time_step(take, seconds=seconds)
    return rates


def compare_flax(config: Config, *, seconds: float, smoke: bool) -> dict[str, float]:
    """Pictures a second of our step and of the one after Flax' example, with the same batch, in turns."""
    side, batch, classes = config.data.image_size, config.batch_size, STEPS["imagenet"]
    blocks, width = ((1,), 8) if smoke else ((3, 4, 6, 3), 64)
    takes = {
        "jaxcnn": hold_batch(lower_step(config, classes=classes, mesh=None).compile(), config, classes=classes),
        "flax": make_flax_step(blocks=blocks, width=width, classes=classes, batch=batch, side=side),
    }
    rates: dict[str, float] = dict.fromkeys(takes, 0.0)
    for _ in range(3):
        for name, take in takes.items():
            rates[name] = max(rates[name], batch / time_step(take, seconds=seconds / 2))
    return rates


def train_digits(*, smoke: bool) -> dict[str, Any]:
    """A run of the preset `digits`, with its evaluation and its export."""
    config = PRESETS["digits"]()
    if smoke:
        config = dataclasses.replace(config, model=ModelConfig(widths=(8,), blocks=(1,)), epochs=1)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        evaluation = train(config, Path(folder) / "digits")
    assert evaluation is not None
    return {"top1": evaluation.top1, "pictures": evaluation.count, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    main()
