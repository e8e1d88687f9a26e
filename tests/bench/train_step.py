"""Speed of a training step, beside PyTorch and Keras: `python -m tests.bench.train_step --preset PRESET`.

Each contestant trains the preset's network, or the one of `--model`, on random pictures in a separate process. The
processes take turns of a few steps, so that other load on the machine affects all of them. The rates are images per
second of the best and of the median step; the last line is one JSON object.

The peers are optional: `pip install torch==2.14.1 torchvision timm`, `pip install tensorflow`. With `--peers PYTHON`
they run in the Python (3.12 or newer) of another environment. They are written as their users would, with their best
settings: channels last for PyTorch, a compiled training step for Keras.

- jaxcnn: the step of `python -m jaxcnn.train PRESET` in its last epoch, with augmentation, but with the optimizer of
  the others: Adam for the original network, SGD with Nesterov's momentum for the rest.
- jaxcnn_plain: the same without CPU kernels.
- torch_float32, torch_bf16: forward pass, backward pass and optimizer; the second in `torch.autocast`. ResNets and
  MobileNets are torchvision's, the other networks for photographs are timm's.
- torch_compile_float32, torch_compile_bf16: the same with the network and its loss compiled by `torch.compile`.
- keras: `train_on_batch` in float32, on TensorFlow.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from jaxcnn.config import ModelConfig
from jaxcnn.presets import PRESETS

TORCH = ("torch_float32", "torch_bf16", "torch_compile_float32", "torch_compile_bf16")
CONTESTANTS = ("jaxcnn", "jaxcnn_plain", *TORCH, "keras")
CLASSES = 200
ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset",
        default="tiny_imagenet",
        help="preset that gives the model, the batch size and the largest resolution",
    )
    parser.add_argument("--model", help="name of another network")
    parser.add_argument("--batch", type=int, help="batch size")
    parser.add_argument("--resolution", type=int, help="side of the pictures in pixels")
    parser.add_argument("--precision", help="precision of jaxcnn: float32, bfloat16 or auto")
    parser.add_argument("--rounds", type=int, default=6, help="number of turns")
    parser.add_argument("--steps", type=int, default=3, help="steps in each turn")
    parser.add_argument("--peers", default=sys.executable, help="Python interpreter that has PyTorch and Keras")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        contend(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Starts the contestants, lets them take turns, and prints a table and a JSON object."""
    # Start all contestants, and leave out what cannot run here.
    running = {name: start(name, arguments) for name in arguments.only}
    seconds: dict[str, list[float]] = {}
    for name, process in running.items():
        line = process.stdout.readline() if process.stdout else ""
        if line.strip() == "ready":
            seconds[name] = []
        else:
            print(f"{name} does not run here: {line.strip() or 'see above'}", file=sys.stderr)
    # Take turns.
    for _ in range(arguments.rounds):
        for name, taken in seconds.items():
            process = running[name]
            print("go", file=process.stdin, flush=True)
            taken += json.loads(process.stdout.readline())
    for process in running.values():
        process.stdin.close()
        process.wait()
    # Report.
    batch, _, _ = settings(arguments)
    best = {name: batch / min(taken) for name, taken in seconds.items()}
    median = {name: batch / statistics.median(taken) for name, taken in seconds.items()}
    torch = max((best[name] for name in TORCH if name in best), default=None)
    print(f"{'':22}{'best':>8}{'median':>8}  images/s")
    for name in seconds:
        print(f"{name:22}{best[name]:8.1f}{median[name]:8.1f}")
    ratio = best["jaxcnn"] / torch if torch and "jaxcnn" in best else None
    print(json.dumps({**{name: best.get(name) for name in CONTESTANTS}, "median": median, "ratio": ratio}))


def start(name: str, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    """Starts a contestant, which prints `ready`, then for every line that it reads the seconds of a turn's steps."""
    python = sys.executable if name.startswith("jaxcnn") else arguments.peers
    batch, resolution, model = settings(arguments)
    command = [python, "-m", "tests.bench.train_step", "--contestant", name, "--preset", arguments.preset]
    command += ["--batch", str(batch), "--resolution", str(resolution), "--model", model.name]
    command += ["--steps", str(arguments.steps)]
    if arguments.precision:
        command += ["--precision", arguments.precision]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def settings(arguments: argparse.Namespace) -> tuple[int, int, ModelConfig]:
    """Batch size, resolution and network."""
    config = PRESETS[arguments.preset]()
    sides = [side for _, side in config.resolutions] or [config.data.image_size]
    model = config.model
    if arguments.model and arguments.model != model.name:
        model = ModelConfig(name=arguments.model, precision="auto")
    return arguments.batch or config.batch_size, arguments.resolution or max(sides), model


def contend(arguments: argparse.Namespace) -> None:
    """Prepares a step, takes two to warm up, then takes a turn for each line of standard input."""
    import time

    batch, resolution, model = settings(arguments)
    try:
        if arguments.contestant.startswith("jaxcnn"):
            from tests.bench.train_step_jaxcnn import make_step

            step: Callable[[], None] = make_step(
                arguments.preset,
                model=model,
                batch=batch,
                resolution=resolution,
                precision=arguments.precision,
                cpu_kernels=arguments.contestant == "jaxcnn",
            )
        elif arguments.contestant.startswith("torch"):
            from tests.bench.train_step_torch import make_step as make_torch_step

            step = make_torch_step(
                model,
                batch=batch,
                resolution=resolution,
                classes=CLASSES,
                bf16=arguments.contestant.endswith("bf16"),
                compiled="compile" in arguments.contestant,
            )
        else:
            from tests.bench.train_step_keras import make_step as make_keras_step

            step = make_keras_step(model.name, batch=batch, resolution=resolution, classes=CLASSES)
    except ImportError as error:
        print(error, flush=True)
        return
    step()
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(arguments.steps):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
