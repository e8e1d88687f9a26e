"""Speed in onnxruntime of files from this exporter, jax2onnx and PyTorch: `python -m tests.bench.export`.

All export the same ResNet and the same MBConv network, from uint8 pictures [batch, 64, 64, 3] to 200 logits. The files
run on one thread in turns and are compared turn by turn, so that other load on the machine affects all alike.

`--photographs` compares networks for photographs of 224x224 pixels instead, with PyTorch alone. The networks of timm
and efficientnet-lite-pytorch, which `--torch` has to have, draw random weights, and both files hold these.

The peers are optional: `--jax2onnx PYTHON` names the Python of an environment with `jax2onnx` and `flax`, `--torch
PYTHON` one with `torch`, `onnx` and `onnxscript`. The stale shapes that jax2onnx leaves in its files, which keep
onnxruntime from optimizing, are removed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from flax.traverse_util import unflatten_dict

import export
from jaxcnn.config import ModelConfig
from jaxcnn.models import registry
from jaxcnn.models.pretrained.formats import recognise
from jaxcnn.models.pretrained.pth import read_pth
from tests.bench.export_networks import NETWORKS, SIDE, function

ROOT = Path(__file__).parents[2]
REPETITIONS = {1: 40, 64: 1}  # Runs in one turn, by batch size.
PHOTOGRAPHS = {
    "efficientnet_lite0": "efficientnet-lite0",
    "resnet50": "resnet50",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "convnext_atto": "convnext_atto",
    "vit_tiny": "vit_tiny_patch16_224",
}
"""The networks of `--photographs`, and what their packages call them."""
PHOTOGRAPH_SIDE, PHOTOGRAPH_REPETITIONS = 224, {1: 5, 16: 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jax2onnx", metavar="PYTHON", help="Python with jax2onnx and flax")
    parser.add_argument("--torch", metavar="PYTHON", help="Python with torch, onnx and onnxscript")
    parser.add_argument("--photographs", action="store_true", help="networks for photographs, beside PyTorch's files")
    parser.add_argument("--rounds", type=int, default=20, help="number of turns of each file")
    arguments = parser.parse_args()
    if arguments.photographs and arguments.torch is None:
        parser.error("--photographs needs --torch PYTHON, with torch, onnxscript, timm and efficientnet-lite-pytorch")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.photographs:
            write_photographs(folder, arguments.torch)
            exporters, networks, side, repetitions = (
                ["jaxcnn", "torch"], [*PHOTOGRAPHS], PHOTOGRAPH_SIDE, PHOTOGRAPH_REPETITIONS
            )  # fmt: skip
        else:
            exporters, networks, side, repetitions = write(folder, arguments), [*NETWORKS], SIDE, REPETITIONS
        results = {
            network: measure(folder, network, exporters, arguments.rounds, side=side, repetitions=repetitions)
            for network in networks
        }
    report(results)


def write(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Writes NETWORK.EXPORTER.onnx for each exporter that runs here; returns the exporters."""
    for name in NETWORKS:
        model = export.to_onnx(function(name), {"image": ("uint8", ("batch", SIDE, SIDE, 3))})
        (folder / f"{name}.jaxcnn.onnx").write_bytes(model.SerializeToString())
    exporters = ["jaxcnn"]
    commands = {
        "jax2onnx": [arguments.jax2onnx, "-m", "tests.bench.export_jax2onnx", str(folder)],
        "torch": [arguments.torch, str(ROOT / "tests" / "bench" / "export_torch.py"), str(folder)],
    }
    for exporter, command in commands.items():
        if command[0] is None:
            print(f"{exporter} is skipped; give --{exporter} PYTHON to include it", file=sys.stderr)
            continue
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print(f"{exporter} is skipped, it fails: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        else:
            exporters.append(exporter)
    return exporters


def write_photographs(folder: Path, torch: str) -> None:
    """Writes NETWORK.torch.onnx and NETWORK.jaxcnn.onnx with the same weights for each network for photographs."""
    program = str(ROOT / "tests" / "bench" / "export_timm.py")
    for name, original in PHOTOGRAPHS.items():
        subprocess.run([torch, program, str(folder / name), original], check=True)
        network, tensors = recognise(read_pth(folder / f"{name}.pth"))
        module = registry.build(ModelConfig(name=network, precision="float32"), classes=1000)
        variables = unflatten_dict(tensors, sep="/")
        model = export.to_onnx(
            lambda image, module=module, variables=variables: module.apply(variables, image, train=False),
            {"image": ("uint8", ("batch", PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE, 3))},
        )
        (folder / f"{name}.jaxcnn.onnx").write_bytes(model.SerializeToString())


def measure(
    folder: Path, network: str, exporters: list[str], rounds: int, *, side: int, repetitions: dict[int, int]
) -> dict[str, dict[int, list[float]]]:
    """Returns the seconds of one run in each turn, by exporter and batch size."""
    sessions = {exporter: open_session(folder / f"{network}.{exporter}.onnx") for exporter in exporters}
    images = np.random.default_rng(0).integers(0, 256, (max(repetitions), side, side, 3), np.uint8)
    seconds: dict[str, dict[int, list[float]]] = {
        exporter: {size: [] for size in repetitions} for exporter in exporters
    }
    # The order rotates, so that no file always runs after the same one.
    for turn in range(rounds):
        for size, count in repetitions.items():
            for exporter in exporters[turn % len(exporters) :] + exporters[: turn % len(exporters)]:
                session = sessions[exporter]
                feed = {session.get_inputs()[0].name: images[:size]}
                start = time.perf_counter()
                for _ in range(count):
                    session.run(None, feed)
                seconds[exporter][size].append((time.perf_counter() - start) / count)
    return seconds


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def report(results: dict[str, dict[str, dict[int, list[float]]]]) -> None:
    """Prints the table and, last, the JSON object."""
    record: dict[str, dict[str, object]] = {}
    print(f"{'':32}{'ms, one picture':>24}{'pictures/s in a batch':>24}{'times as fast as jaxcnn':>28}")
    for network, seconds in results.items():
        for exporter, times in seconds.items():
            best = {size: min(turns) for size, turns in times.items()}
            median = {size: statistics.median(turns) for size, turns in times.items()}
            ratio = {size: compare(seconds["jaxcnn"][size], times[size]) for size in times}
            size = max(times)
            latency = f"{1e3 * best[1]:.3f} ({1e3 * median[1]:.3f})"
            rate = f"{size / best[size]:.0f} ({size / median[size]:.0f})"
            print(f"{network + ' ' + exporter:32}{latency:>24}{rate:>24}{ratio[1]:>16.3f}, {ratio[size]:.3f}")
            record[f"{network} {exporter}"] = {"ms": 1e3 * best[1], "rate": size / best[size], "ratio": ratio}
    print("best turn (median turn); the last columns are the median of the ratios within each turn")
    print(json.dumps(record))


def compare(own: list[float], other: list[float]) -> float:
    """Returns how many times as fast the other exporter's file is, in the median of the turns."""
    return statistics.median(mine / theirs for mine, theirs in zip(own, other, strict=True))


if __name__ == "__main__":
    main()
