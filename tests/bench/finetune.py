"""Compares fine-tuning with training from scratch on few pictures: `python -m tests.bench.finetune`.

Draws a data set, objects of eight shapes in scenes with textures, light and clutter, and trains the preset `finetune`
on it. Then trains `folder` from scratch, once for its number of epochs and once for as long as `finetune` took. Times
are those of the training steps, without compilation. The last line is one JSON object.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageFilter

from jaxcnn import data
from jaxcnn.config import Config
from jaxcnn.loop import Run, evaluate_variables, initial_state, prepare, take_step
from jaxcnn.ops.allocator import keep_freed_memory
from jaxcnn.presets import finetune, folder
from jaxcnn.weights import read_model, read_weights

SIDE = 96
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ball": lambda x, y: 1 - np.hypot(x, y),
    "box": lambda x, y: 0.85 - np.maximum(abs(x), abs(y)),
    "cross": lambda x, y: np.minimum(0.3 - np.minimum(abs(x), abs(y)), 1 - np.maximum(abs(x), abs(y))),
    "flower": lambda x, y: 0.7 + 0.3 * np.cos(6 * np.arctan2(y, x)) - np.hypot(x, y),
    "moon": lambda x, y: np.minimum(1 - np.hypot(x, y), np.hypot(x - 0.5, y) - 0.75),
    "ring": lambda x, y: 0.28 - abs(np.hypot(x, y) - 0.7),
    "star": lambda x, y: 0.62 + 0.38 * np.cos(5 * np.arctan2(y, x)) - np.hypot(x, y),
    "wedge": lambda x, y: 0.5 - np.maximum(y, abs(x) * 0.87 - y * 0.5),
}
"""For each class a function of coordinates between about -1 and 1 that is positive inside the object."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init_from", default="shipped", help="weights to start from, as in training")
    parser.add_argument("--train", type=int, default=24, help="training pictures of each class")
    parser.add_argument("--validation", type=int, default=50, help="validation pictures of each class")
    parser.add_argument("--pictures", type=Path, help="folder to write the data set to instead of a temporary one")
    parser.add_argument("--seeds", type=int, default=1, help="number of trainings of each kind")
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        pictures = arguments.pictures or Path(temporary) / "pictures"
        write_pictures(pictures, {"train": arguments.train, "val": arguments.validation})
        results = [compare(pictures, temporary, arguments.init_from, seed) for seed in range(arguments.seeds)]
    mean = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
    print(json.dumps(mean))


def compare(pictures: Path, cache: str, init_from: str, seed: int) -> dict[str, float]:
    """Returns top-1 accuracy, seconds and epochs of every training."""
    given = {"data": dataclasses.replace(folder().data, source=str(pictures), cache_dir=cache), "seed": seed}
    tuned = dataclasses.replace(
        finetune(), init_from=init_from, model=finetune().model.with_shape_of(read_model(init_from)), **given
    )
    scratch = dataclasses.replace(folder(), **given)
    result: dict[str, float] = {}
    for name, config in (("finetune", tuned), ("scratch", scratch)):
        result |= train(name, config)
    share = result["finetune_seconds"] / result["scratch_seconds"]
    return result | train("equal_time", dataclasses.replace(scratch, epochs=max(1, round(scratch.epochs * share))))


def train(name: str, config: Config) -> dict[str, float]:
    """Trains without checkpoints; takes the first step once before, to compile it."""
    dataset = data.load(config.data)
    run = prepare(config, dataset)
    weights = None if config.init_from is None else read_weights(config.init_from)
    jax.block_until_ready(steps(run, weights, count=1))
    start = time.perf_counter()
    state = jax.block_until_ready(steps(run, weights, count=run.total_steps))
    seconds = time.perf_counter() - start
    top1 = evaluate_variables(run, state.evaluated).top1
    print(f"{name}: top-1 {top1:.3f} after {config.epochs} epochs in {seconds:.1f} s, seed {config.seed}", flush=True)
    return {f"{name}_top1": top1, f"{name}_seconds": seconds, f"{name}_epochs": config.epochs}


def steps(run: Run, weights, *, count: int):
    """Returns the state after `count` steps."""
    state, config = initial_state(run, weights), run.config
    batches = data.train_batches(run.dataset.train, seed=config.seed, batch_size=config.batch_size)
    with contextlib.closing(batches):
        for step, batch in enumerate(itertools.islice(batches, count)):
            state, metrics = take_step(run, state, batch, epoch=step // run.steps_per_epoch)
            metrics.loss.block_until_ready()
    return state


def write_pictures(root: Path, counts: dict[str, int]) -> None:
    """Writes `SPLIT/CLASS/0.jpg` and so on; `counts` has the number of pictures of a class by split."""
    for split, (part, count) in enumerate(counts.items()):
        for label, name in enumerate(SHAPES):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                picture = draw(name, np.random.default_rng([split, label, index]))
                picture.save(root / part / name / f"{index}.jpg", quality=85)


def draw(name: str, random: np.random.Generator) -> Image.Image:
    """Draws an object of a class in random colours, position, size and rotation, lit from one side, on clutter."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE * 2 - 1
    scene = colours(random, spread=60)
    for other in random.choice([shape for shape in SHAPES if shape != name], 2):
        place(scene, other, x, y, random, size=random.uniform(0.1, 0.2))
    place(scene, name, x, y, random, size=random.uniform(0.4, 0.65), reach=0.35)
    scene = scene * random.uniform(0.7, 1.2) + random.normal(0, 6, scene.shape)
    picture = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0, 1)))


def place(scene, name: str, x, y, random: np.random.Generator, *, size: float, reach: float = 0.9) -> None:
    """Paints an object and its shadow into a scene, in place."""
    angle, (left, top) = random.uniform(0, 2 * np.pi), random.uniform(-reach, reach, 2)
    lean = random.uniform(0.75, 1)  # foreshortening: the object is narrower in one direction

    def inside(x, y) -> np.ndarray:
        u, v = (x - left) / size, (y - top) / size / lean
        distance = SHAPES[name](u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle))
        return (distance * size * SIDE / 2 + 0.5).clip(0, 1)[..., None]

    scene *= 1 - 0.5 * inside(x - 0.08, y - 0.08)
    light = 1 - 0.4 * ((x - left) + (y - top)) / size
    cover = inside(x, y)
    scene *= 1 - cover
    scene += cover * (colours(random, spread=30) * light[..., None].clip(0.3, 1.7))


def colours(random: np.random.Generator, *, spread: float) -> np.ndarray:
    """Returns a colour with the texture of a surface: noise whose amplitude falls with its frequency."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(random.normal(size=(SIDE, SIDE))) / frequency ** random.uniform(0.8, 1.6)).real
    grain = noise / noise.std() * random.uniform(0.3, 1) * spread
    return random.uniform(40, 215, 3) + grain[..., None] * random.uniform(0.6, 1, 3)


if __name__ == "__main__":
    main()
