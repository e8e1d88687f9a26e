"""Pictures per second of `jaxcnn.predict`, beside a bare loop of decoding and `Run`, and its memory.

`python -m tests.bench.predict --model FILE` draws JPEGs, and classifies them in turns with the command and with a loop
that does nothing but decode, resize and run on all cores; both are processes of their own. The ratio is of the medians.
The ratio of the CPU times says the same where other programs disturb the clock. The memory is the command's largest
resident set over all pictures, and over an eighth of them. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

ROOT = Path(__file__).parents[2]
BATCH = 16


def draw(folder: Path, count: int, *, width: int, height: int) -> None:
    """Writes JPEGs, all different, in folders of 500."""
    random = np.random.default_rng(0)

    def write(number: int, coarse: np.ndarray) -> None:
        place = folder / f"{number // 500:03}"
        place.mkdir(exist_ok=True)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(place / f"{number:06}.jpg", quality=85)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            coarse = random.integers(0, 256, (len(numbers), 24, 32, 3), np.uint8)
            list(pool.map(write, numbers, coarse))


def bare_loop(model: Path, folder: Path) -> None:
    """Decodes, resizes and runs all pictures, a thread for each core, and forgets the results."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[1]
    paths = sorted(folder.rglob("*.jpg"))

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            image.draft(None, (4 * side, 4 * side))
            return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))

    def work(start: int) -> int:
        images = np.stack([read(path) for path in paths[start : start + BATCH]])
        return len(session.run(["logits"], {"image": images})[0])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        print(sum(pool.map(work, range(0, len(paths), BATCH))))


def measure(*command: object) -> tuple[float, float, float]:
    """Returns the seconds that a command takes, its CPU seconds, and the MB of its largest resident set."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "server" / "models" / "tiny_imagenet.onnx")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), help="width and height in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", type=Path, help="run the bare loop on this folder, and print nothing else")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    if arguments.bare:
        bare_loop(model, arguments.bare)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, output = Path(scratch, "pictures"), Path(scratch, "results.csv")
        folder.mkdir()
        draw(folder, arguments.count, width=arguments.size[0], height=arguments.size[1])
        commands = {
            "predict": ("-m", "jaxcnn.predict", model, folder, "--output", output),
            "bare": ("-m", "tests.bench.predict", "--model", model, "--bare", folder),
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            output.unlink(missing_ok=True)
            for name, command in commands.items():
                found[name].append(measure(*command))
                print(name, *(round(value, 2) for value in found[name][-1]), flush=True)
        # An eighth of the pictures, for the memory.
        few = Path(scratch, "few")
        few.mkdir()
        folders = sorted(folder.iterdir())
        for path in folders[: max(len(folders) // 8, 1)]:
            path.rename(few / path.name)
        output.unlink()
        *_, little = measure("-m", "jaxcnn.predict", model, few, "--output", output)
    seconds, cpu = ({name: statistics.median(row[i] for row in rows) for name, rows in found.items()} for i in (0, 1))
    result = {
        "count": arguments.count,
        "cores": len(os.sched_getaffinity(0)),
        "images_per_second": {name: round(arguments.count / value, 1) for name, value in seconds.items()},
        "ratio": round(seconds["bare"] / seconds["predict"], 3),
        "ratio_of_cpu_time": round(cpu["bare"] / cpu["predict"], 3),
        "memory_mb": round(max(row[2] for row in found["predict"])),
        "memory_of_an_eighth_mb": round(little),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
