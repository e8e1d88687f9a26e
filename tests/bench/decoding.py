"""Pictures that one core reads in a second: `python -m tests.bench.decoding [--smoke]`.

All read the same JPEGs of 500x375 pixels and 90 kB, and cut random crops that become 224x224 pixels, in turns of about
a second, on one core. The rates are medians; the ratio of the CPU times says the same where other programs disturb the
clock. The last line is one JSON object.

- store: batches for training from the encoded store: ArrayRecord files, threads, everything.
- loop: a plain loop that reads the same records, decodes, cuts and resizes them with Pillow, and fills batches.
- decode: the loop without crops and resizing.
- simplejpeg, opencv: the loop with another decoder, and with OpenCV's resize by areas.
- grain: the loop's work as a pipeline of Grain with its own order, random numbers, threads and batches.

The last three are optional: `pip install simplejpeg opencv-python-headless grain`.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcnn.data.batches import train_batches
from jaxcnn.data.crops import Box, Crop, draw_crops
from jaxcnn.data.encoded_images import EncodedImages
from jaxcnn.data.resize import Resize
from jaxcnn.data.shards import Shards, ShardWriter
from jaxcnn.data.split import Split, facts_type
from jaxcnn.ops.allocator import keep_freed_memory

WIDTH, HEIGHT, SIDE, BATCH, PICTURES = 500, 375, 224, 64, 256
AREA = (0.08, 1.0)
"""Share of a picture's area in a crop, as recipes for ImageNet have it."""

type Read = Callable[[bytes, Box], np.ndarray]
"""Decodes a JPEG, and returns a part of it as RGB [SIDE, SIDE, 3]."""
type Turn = Callable[[], tuple[float, float]]
"""Reads all pictures once; returns the seconds that this takes, and the CPU seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="few pictures: a test of the script")
    arguments = parser.parse_args()
    rounds, count = (1, BATCH) if arguments.smoke else (arguments.rounds, PICTURES)
    print(json.dumps(measure(rounds=rounds, count=count)))


def measure(*, rounds: int, count: int = PICTURES) -> dict[str, float]:
    """Returns the rates, and the ratios of the store's to that of the plain loop.

    The process keeps to one core from then on.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    keep_freed_memory()  # As training does
    with tempfile.TemporaryDirectory() as folder:
        turns = dict(make_turns(write_shards(Path(folder), count)))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        # The first round warms up.
        for number in range(1 + rounds):
            for name, turn in turns.items():
                taken = turn()
                found[name] += [taken] * (number > 0)
    seconds, cpu = ({name: statistics.median(row[i] for row in rows) for name, rows in found.items()} for i in (0, 1))
    for name, rows in found.items():
        print(f"{name:12}{count / seconds[name]:8.1f} pictures/s on one core, at best {count / min(rows)[0]:.1f}")
    return {
        **{name: count / taken for name, taken in seconds.items()},
        "ratio": seconds["loop"] / seconds["store"],
        "ratio_of_cpu_time": cpu["loop"] / cpu["store"],
    }


def clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def write_shards(folder: Path, count: int) -> Shards:
    """Writes JPEGs that take as long as photographs, of shapes and noise, into ArrayRecord files."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "train") as writer:
        for _ in range(count):
            shapes = Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8)).resize((WIDTH, HEIGHT))
            noisy = np.asarray(shapes) + rng.normal(0, 14, (HEIGHT, WIDTH, 3))
            file = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
            writer.write(file.getvalue())
    return Shards.open(
        folder,
        writer.names,
        labels=np.zeros(count, np.int32),
        facts=np.zeros(count, facts_type(1)),
        counts=dict(zip(writer.names, writer.counts, strict=True)),
    )


def make_turns(shards: Shards) -> Iterator[tuple[str, Turn]]:
    """Yields the names of all contestants, and what takes a turn of each."""
    images = EncodedImages(shards, SIDE, Resize(mode="crop", side=256))
    split = Split(images, shards.labels, SIDE, shards.facts, crop_scale=AREA)
    order = np.random.default_rng(1).permutation(len(shards)).tolist()
    draws = draw_crops(seed=0, step=0, count=len(shards))
    crops = [Crop(AREA, draw).box(WIDTH, HEIGHT, mode="crop") for draw in draws]

    def store() -> tuple[float, float]:
        # The thread is always the same number of batches ahead, so that it makes as many as are taken.
        with contextlib.closing(train_batches(split, seed=0, batch_size=BATCH)) as batches:
            next(batches)
            begin = clock()
            for _ in range(0, len(shards), BATCH):
                next(batches)
            return tuple(clock() - begin)

    def loop(read: Read) -> tuple[float, float]:
        begin = clock()
        for start in range(0, len(order), BATCH):
            batch = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
            for row, place in enumerate(order[start : start + BATCH]):
                batch[row] = read(shards.records[place], crops[start + row])
        return tuple(clock() - begin)

    def decode() -> tuple[float, float]:
        begin = clock()
        for place in order:
            Image.open(io.BytesIO(shards.records[place])).load()
        return tuple(clock() - begin)

    yield "store", store
    for name, read in readers():
        yield name, partial(loop, read)
    yield "decode", decode
    with contextlib.suppress(ImportError):
        yield "grain", read_with_grain(shards)


def read_with_grain(shards: Shards) -> Turn:
    """Returns a turn of Grain's pipeline with its default threads."""
    import grain

    def cut(file: bytes, rng: np.random.Generator) -> np.ndarray:
        return read_with_pillow(file, Crop(AREA, rng.random(4)).box(WIDTH, HEIGHT, mode="crop"))

    dataset = grain.MapDataset.source(shards.records).seed(0).shuffle().random_map(cut).batch(BATCH)

    def turn() -> tuple[float, float]:
        # Grain reads hundreds of elements ahead. One epoch at a time, no turn takes what was read in another.
        begin = clock()
        for _ in dataset.to_iter_dataset():
            pass
        return tuple(clock() - begin)

    return turn


def read_with_pillow(file: bytes, box: Box) -> np.ndarray:
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def readers() -> Iterator[tuple[str, Read]]:
    """Yields the ways to decode that are installed."""
    yield "loop", read_with_pillow
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)

        def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
            left, top, right, bottom = map(round, box)
            return cv2.resize(pixels[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)

        yield "opencv", lambda file, box: cut(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB), box)

        import simplejpeg

        yield "simplejpeg", lambda file, box: cut(simplejpeg.decode_jpeg(file), box)


if __name__ == "__main__":
    main()
