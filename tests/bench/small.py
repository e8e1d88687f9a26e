"""What the server holds on small machines: confined by control groups to some CPUs and some memory.

`python -m tests.bench.small --model FILE` needs root and version 1 of the control groups. For each machine it measures
a sustained load of 8 clients, a burst of 100 requests at once, four times the load that it can answer, and the largest
pictures that its settings allow, of the kinds that take most memory. The last line is one JSON object. The load comes
from the same cores, outside of the group: figures for 2 CPUs include it.
"""

import argparse
import contextlib
import io
import json
import math
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.bench.serve import PORT, load, running

_GROUPS = Path("/sys/fs/cgroup")
_PERIOD = 100_000


@dataclass(frozen=True)
class Machine:
    """CPUs, mebibytes of memory, and the settings that fit them."""

    cpus: float
    memory: int
    settings: dict[str, str]

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU, {self.memory} MiB"


MACHINES = [
    Machine(2, 2048, {}),
    Machine(
        1,
        512,
        {
            "JAXCNN_MAX_PIXELS": "8000000",
            "JAXCNN_MAX_DECODE_BYTES": "192000000",
            "JAXCNN_MAX_BUFFER_BYTES": "33554432",
        },
    ),
    Machine(
        0.5,
        256,
        {
            "JAXCNN_MAX_PIXELS": "4000000",
            "JAXCNN_MAX_DECODE_BYTES": "85500000",
            "JAXCNN_MAX_BUFFER_BYTES": "8388608",
            "JAXCNN_MAX_BODY_BYTES": "4194304",
        },
    ),
]


@contextlib.contextmanager
def confined(machine: Machine) -> Iterator[tuple[list[str], Path]]:
    """Yields a command that confines what follows it, and the folder of the memory's group."""
    folders = [_GROUPS / kind / "jaxcnn-bench" for kind in ("cpu", "memory")]
    for folder in folders:
        folder.mkdir()
    try:
        (folders[0] / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (folders[0] / "cpu.cfs_quota_us").write_text(str(int(machine.cpus * _PERIOD)))
        (folders[1] / "memory.limit_in_bytes").write_text(str(machine.memory * 2**20))
        enter = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in folders)
        yield ["sh", "-c", f'{enter}exec "$@"', "sh"], folders[1]
    finally:
        for folder in folders:
            folder.rmdir()


def largest_pictures(pixels: int) -> list[tuple[str, bytes]]:
    """Returns files of `pixels` pixels: an RGBA PNG and WebP, and progressive JPEGs in color and in CMYK."""
    side = math.isqrt(pixels)
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    planes = np.stack([np.broadcast_to(ramp, (side, side)), np.broadcast_to(ramp[:, None], (side, side))] * 2, axis=-1)
    kinds: list[tuple[str, str, str, dict[str, Any]]] = [
        ("RGBA PNG", "PNG", "RGBA", {}),
        ("RGBA WebP", "WEBP", "RGBA", {"lossless": True, "method": 0}),
        ("JPEG", "JPEG", "RGB", {"progressive": True}),
        ("CMYK JPEG", "JPEG", "CMYK", {"progressive": True}),
    ]
    files = []
    for name, kind, mode, options in kinds:
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes[..., : len(mode)]), mode).save(stream, kind, **options)
        files.append((name, stream.getvalue()))
    return files


def post(file: bytes) -> int:
    """Sends a picture, and returns the status, or 0 if the connection is lost."""
    url = f"http://127.0.0.1:{PORT}/predict"
    request = urllib.request.Request(url, file, {"Content-Type": "application/octet-stream"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def measure(machine: Machine, model: Path, seconds: float) -> dict[str, Any]:
    """Returns the figures of one machine and one model."""
    threads = math.ceil(machine.cpus)
    settings = {"JAXCNN_THREADS": str(threads), "PORT": str(PORT), **machine.settings}
    ours = [sys.executable, "-m", "server.deploy.container", "serve"]
    with confined(machine) as (prefix, memory), running([*prefix, *ours], model, **settings) as (process, ready):
        load(2, 1, "raw")
        figures: dict[str, Any] = {"ready_s": round(ready, 2), "rss_mb": round(process.rss_mb())}
        sustained = load(8, seconds, "raw")
        figures["per_second"], figures["p99_ms"] = sustained["per_second"], sustained["p99_ms"]
        burst = load(100, 60, "raw", "--count", 100)
        figures["burst"] = {key: burst[key] for key in ("statuses", "max_ms")}
        overload = load(1, seconds, "raw", "--rate", 4 * sustained["per_second"])
        figures["overload"] = {key: overload[key] for key in ("per_second", "statuses", "p99_ms", "refused_p99_ms")}
        # Twice as many pictures as threads at once, of each kind.
        pixels = int(machine.settings.get("JAXCNN_MAX_PIXELS", "25000000"))
        figures["largest"] = {}
        with ThreadPoolExecutor(2 * threads) as pool:
            for name, file in largest_pictures(pixels):
                start = time.perf_counter()
                statuses = list(pool.map(post, [file] * 2 * threads))
                figures["largest"][name] = {"statuses": statuses, "seconds": round(time.perf_counter() - start, 2)}
        figures["peak_mb"] = round(int((memory / "memory.max_usage_in_bytes").read_text()) / 2**20)
        figures["at_limit"] = int((memory / "memory.failcnt").read_text())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", required=True, help="ONNX file; may be given again")
    parser.add_argument("--seconds", type=float, default=5, help="of each load (default: 5)")
    options = parser.parse_args()
    if os.geteuid() != 0 or not (_GROUPS / "memory" / "memory.limit_in_bytes").exists():
        raise SystemExit("tests.bench.small needs root and version 1 of the control groups")
    # A time limit must not leave a server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: dict[str, Any] = {}
    for model in options.model:
        for machine in MACHINES:
            results[f"{model.stem}, {machine}"] = figures = measure(machine, model.resolve(), options.seconds)
            print(f"{model.stem}, {machine}: {figures}", file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
