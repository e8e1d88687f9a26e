"""How training scales: `python -m tests.bench.scaling [--plot FILE.svg] [--only PART ...] [--smoke]`.

Seconds of a step of a small network, against one thing at a time:

- devices: a batch divided among virtual devices, which share the cores of this machine.
- processes: the same among processes, which exchange gradients over the network of this machine.
- batch: pictures in a batch.
- classes: up to the 21,841 of ImageNet-21k.
- examples: up to 10 million of 21,841 classes. Runs the command `jaxcnn.train` on a synthetic set in the encoded store:
  10,000 tiny JPEGs, whose file counts as many times as it takes, but labels and facts of every example. Also measures
  how long the command takes to its first step, and its memory.

- decoding: what one core reads, see `tests.bench.decoding`.

`linear_seconds` is what a linear law predicts from the first point, or from the last one of `batch`: devices share the
work, pictures add to it, classes and examples cost nothing. The last line is one JSON object.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BATCH, CLASSES, SIDE, PICTURES = 256, 10, 32, 10_000
PARTS = {
    "devices": [1, 2, 4, 8],
    "processes": [1, 2, 4],
    "batch": [8, 32, 128, 512, 2048],
    "classes": [10, 100, 1000, 10_000, 21_841],
    "examples": [10_000, 100_000, 1_000_000, 10_000_000],
}
SMOKE = {"processes": [2], "examples": [20_000]}
WATCHED_SECONDS = 20.0
"""Time for which the command trains, counted from its first record."""

type Point = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "decoding"], default=[*PARTS, "decoding"])
    parser.add_argument("--plot", type=Path, help="SVG to draw the results in")
    parser.add_argument("--smoke", action="store_true", help="a point of some parts: a test of the script")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(**json.loads(arguments.work))
        return
    parts, steps = (SMOKE, 2) if arguments.smoke else (PARTS, 12)
    result: dict[str, Any] = {}
    for name in (name for name in parts if name in arguments.only):
        points: list[Point] = []
        for value in parts[name]:
            points.append(MEASURE[name](value, steps))
            figures = "  ".join(f"{key} {figure:.4g}" for key, figure in points[-1].items())
            print(f"{name:10}{value:>12,}  {figures}", flush=True)
        add_linear(name, parts[name], points)
        result[name] = {"at": parts[name], "points": points}
    if arguments.plot:
        draw(result, arguments.plot)
    if "decoding" in arguments.only:
        command = [sys.executable, "-m", "tests.bench.decoding", *["--smoke"] * arguments.smoke]
        output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        result["decoding"] = json.loads(output.splitlines()[-1])
    print(json.dumps(result))


def add_linear(name: str, values: Sequence[int], points: list[Point]) -> None:
    """Adds to each point the seconds of a step that a linear law predicts."""
    power = {"devices": -1, "processes": -1, "batch": 1}.get(name, 0)
    origin = -1 if name == "batch" else 0
    for value, point in zip(values, points, strict=True):
        point["linear_seconds"] = points[origin]["step_seconds"] * (value / values[origin]) ** power


def start_work(
    *, devices: int = 1, processes: int = 1, batch: int = BATCH, classes: int = CLASSES, steps: int
) -> Point:
    """Measures steps in new processes; returns what the first of them has found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    started = []
    for process in range(processes):
        parallel = {"coordinator": address, "num_processes": processes, "process_id": process} if processes > 1 else {}
        work = json.dumps({"parallel": parallel, "batch": batch, "classes": classes, "steps": steps})
        command = [sys.executable, "-m", "tests.bench.scaling", "--work", work]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    point: Point = json.loads(outputs[0].splitlines()[-1])
    return point


def work(*, parallel: dict[str, Any], batch: int, classes: int, steps: int) -> None:
    """Takes the steps of a run on random pictures, as training does; prints the seconds of the median."""
    import jax
    import numpy as np

    from jaxcnn.config import Config, DataConfig, ModelConfig, ParallelConfig
    from jaxcnn.data import Dataset, Split, train_batches
    from jaxcnn.distributed import place_state
    from jaxcnn.ops.allocator import keep_freed_memory
    from jaxcnn.processes import join
    from jaxcnn.run_step import take_step
    from jaxcnn.training_run import initial_state, prepare

    keep_freed_memory()
    join(ParallelConfig(**parallel))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (2 * batch, SIDE, SIDE, 3), np.uint8), np.arange(2 * batch) % classes
    split = Split(images, labels.astype(np.int32))
    names = tuple(map(str, range(classes)))
    dataset = Dataset(name="noise", names=names, wnids=(), license="", train=split, validation=split)
    # The same kernels on one device and on several.
    model = ModelConfig(widths=(16, 32), blocks=(0, 1), cpu_kernels=False, precision="float32")
    run = prepare(Config(data=DataConfig(image_size=SIDE), model=model, batch_size=batch), dataset)
    state, seconds = place_state(initial_state(run), run.mesh), []
    with contextlib.closing(train_batches(split, seed=0, batch_size=batch, rows=run.rows)) as batches:
        for examples in itertools.islice(batches, 2 + steps):
            begin = time.perf_counter()
            state, metrics = take_step(run, state, examples, epoch=0)
            jax.block_until_ready(metrics.loss)
            seconds.append(time.perf_counter() - begin)
    print(json.dumps({"step_seconds": statistics.median(seconds[2:])}))


def watch_training(examples: int, steps: int) -> Point:
    """Trains on a synthetic set with 21,841 classes; returns the time to the first step, and what the steps take."""
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), examples=examples, classes=PARTS["classes"][-1])
        settings = {
            "data.source": f"{folder}/set.tar",
            "data.cache_dir": f"{folder}/cache",
            "data.store": "encoded",
            "data.image_size": SIDE,
            "data.validation_fraction": None,
            "model.widths": 16,
            "model.blocks": 0,
            "augment.pad_crop": 0,
            "optim.ema_decay": 0,
            "batch_size": BATCH,
        }
        command = [sys.executable, "-m", "jaxcnn.train", "digits", "--json", "--quiet"]
        command += " ".join(f"--{name} {value}" for name, value in settings.items()).split()
        # The first run also decodes the validation pictures, to hash them; the second finds the hash in the cache.
        first = watch([*command, "--workdir", f"{folder}/first"], seconds=0.0)
        later = None if steps <= 2 else watch([*command, "--workdir", f"{folder}/second"], seconds=WATCHED_SECONDS)
        return (later or first) | {"first_start_seconds": first["start_seconds"]}


def watch(command: Sequence[str], *, seconds: float) -> Point:
    """Runs a training for a time, and stops it; returns figures from its records, and its resident memory."""
    begin, records, memory = time.time(), [], []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        record = json.loads(line)
        if record["kind"] != "train":
            continue
        records.append(record)
        memory.append(read_memory(process.pid))
        if len(records) > 1 and record["time"] - records[0]["time"] >= seconds:
            break
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0
    # Records come every two seconds: the first one is of several steps, which the time to the first step is without.
    step = statistics.median(BATCH / record["images_per_second"] for record in records[1:])
    return {
        "step_seconds": step,
        "start_seconds": records[0]["time"] - begin - (records[0]["step"] - 1) * step,
        "first_mb": memory[0]["VmRSS"],
        "last_mb": memory[-1]["VmRSS"],
        "peak_mb": memory[-1]["VmHWM"],
    }


def read_memory(process: int) -> dict[str, float]:
    """Returns the resident memory of a process, now and at its largest, in MB."""
    lines = [line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[0] in ("VmRSS:", "VmHWM:")}


def write_set(folder: Path, *, examples: int, classes: int) -> None:
    """Writes `set.tar`, which is empty, and beside it a cache with the entry of its pictures."""
    import numpy as np
    from PIL import Image

    from jaxcnn.data.encoded_cache import VERSION
    from jaxcnn.data.encoded_dataset import EncodedDataset
    from jaxcnn.data.entry import write_description
    from jaxcnn.data.shards import ShardWriter, describe_shards
    from jaxcnn.data.sources.tars import tar_source
    from jaxcnn.data.split import facts_type

    tar = folder / "set.tar"
    tar.touch()
    entry = folder / "cache" / f"{tar_source(tar, [tar]).key}-encoded"
    entry.mkdir(parents=True)
    rng, writers = np.random.default_rng(0), {}
    # One file of training pictures is listed several times.
    for split, count, repeated in (("train", PICTURES, examples // PICTURES), ("validation", 1000, 1)):
        with ShardWriter(entry, split) as writers[split]:
            for coarse in rng.integers(0, 256, (count, 4, 4, 3), np.uint8):
                file = io.BytesIO()
                Image.fromarray(coarse).resize((SIDE, SIDE)).save(file, "JPEG")
                writers[split].write(file.getvalue())
        writers[split].names *= repeated
        writers[split].counts *= repeated
        facts = np.zeros(count * repeated, facts_type(30))
        facts["file"], facts["same"], facts["alike"], facts["least"] = b"class/name-of-a-picture.jpg", -1, -1, SIDE
        np.save(entry / f"{split}_facts.npy", facts)
        np.save(entry / f"{split}_labels.npy", (np.arange(len(facts)) % classes).astype(np.int32))
    names = tuple(f"class {label}" for label in range(classes))
    dataset = EncodedDataset(name="set", names=names, license="unknown", train=(), validation=())
    write_description(
        entry, dataset, checked=sorted(entry.glob("*.npy")), version=VERSION, **describe_shards(entry, writers)
    )


MEASURE: dict[str, Callable[[int, int], Point]] = {
    "devices": lambda value, steps: start_work(devices=value, steps=steps),
    "processes": lambda value, steps: start_work(processes=value, steps=steps),
    "batch": lambda value, steps: start_work(batch=value, steps=steps),
    "classes": lambda value, steps: start_work(classes=value, steps=steps),
    "examples": watch_training,
}


def draw(result: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the seconds of a step against each thing, with the linear law dashed, and the start and the memory."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    steps = {"measured": "step_seconds", "linear": "linear_seconds"}
    panels = [(name, "seconds of a step", steps) for name in result]
    if "examples" in result:
        starts = {"first start with this set": "first_start_seconds", "later": "start_seconds"}
        memory = {"first record": "first_mb", "last record": "last_mb", "peak": "peak_mb"}
        panels.append(("examples", "seconds to the first step", starts))
        panels.append(("examples", "resident MB", memory))
    with matplotlib.style.context(["default", {"svg.fonttype": "none", "axes.grid": True, "axes.axisbelow": True}]):
        figure = Figure(figsize=(12, 3.4 * -(-len(panels) // 3)), layout="constrained")
        spaces = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).ravel()
        for axes, (name, title, curves) in zip(spaces, panels, strict=False):
            for label, key in curves.items():
                values = [point[key] for point in result[name]["points"]]
                axes.plot(result[name]["at"], values, "--" if label == "linear" else "o-", label=label)
            axes.set(xscale="log", xlabel=name, title=title)
            axes.set_xticks(result[name]["at"], minor=False)
            axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
            axes.minorticks_off()
            if name == "batch":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.legend()
        for axes in spaces[len(panels) :]:
            axes.remove()
        figure.savefig(path)


if __name__ == "__main__":
    main()
