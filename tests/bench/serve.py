"""Throughput, latency and memory of the server, alone, against its peers and under overload.

`python -m tests.bench.serve --model FILE` measures the server under closed-loop load from another process on the same
cores, against a bare loop that decodes and runs in one process. With `--peers PYTHON`, an interpreter that has some of
litserve, bentoml, mlserver, and flask with tensorflow (the original system), it measures these too, each with the best
of the settings in `serve_peers.py`, which it tries first. The order alternates from round to round.
Afterwards `--overload SECONDS` sends four times the requests that the server can answer, and `--soak COUNT` sends that
many requests and records the memory. The last line is one JSON object.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.load import jpegs, message
from tests.bench.peer_model import Setting
from tests.bench.serve_peers import OURS, PORT, Server, find_servers

ROOT = Path(__file__).parents[2]
CELLS = [(kind, concurrency) for kind in ("raw", "json") for concurrency in (1, 8, 64)]
_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A server's process and its descendants."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def _pids(self) -> list[int]:
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        # Appending while iterating visits the descendants of all generations.
        family = [self._pid]
        for ancestor in family:
            family += [pid for pid, parent in parents.items() if parent == ancestor]
        return family

    def cpu_seconds(self) -> float:
        total = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / _TICKS

    def rss_mb(self) -> float:
        total = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return total * os.sysconf("SC_PAGE_SIZE") / 2**20

    def descriptors(self) -> int:
        return self._count("fd")

    def threads(self) -> int:
        return self._count("task")

    def _count(self, folder: str) -> int:
        total = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                total += len(os.listdir(f"/proc/{pid}/{folder}"))
        return total


@contextlib.contextmanager
def running(command: list[str], model: Path, *, kind: str = "json", **settings: str) -> Iterator[tuple[Process, float]]:
    """Starts a server, waits until it responds, and yields its process and the seconds that it took."""
    environment = {**os.environ, "JAXCNN_MODEL": str(model), "JAXCNN_DRAIN_SECONDS": "0", **settings}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    content_type, body, path = message(kind, jpegs(1)[0])
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", body, {"Content-Type": content_type})
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A process group, as LitServe's workers outlive it unless they are terminated as well.
        start_new_session=True,
    ) as process:
        try:
            while not _answers(request):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
                time.sleep(0.01)
            yield Process(process.pid), time.perf_counter() - start
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                process.wait(30)


def _answers(request: urllib.request.Request) -> bool:
    """Whether the server classifies: some peers accept connections long before."""
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return False
    return True


def load(*arguments: object) -> dict[str, Any]:
    """Runs the load generator in another process, and returns its result."""
    command = [sys.executable, "-m", "tests.bench.load", str(PORT), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(name: str, server: Server, setting: Setting | None, model: Path, seconds: float) -> dict[str, Any]:
    """Returns one server's results by cell, a kind of request and a number of clients."""
    cells: dict[str, Any] = {}
    kinds = server.kinds
    variables = {"PEER_SETTING": json.dumps(dataclasses.asdict(setting))} if setting else {}
    with running(server.command, model, kind=kinds["json"], **variables) as (process, ready):
        # Warm up whatever is loaded lazily.
        load(2, min(2, seconds), kinds["json"])
        for kind, concurrency in CELLS:
            # The peers accept no raw bodies.
            if kind not in kinds:
                continue
            before, start = process.cpu_seconds(), time.perf_counter()
            result = load(concurrency, seconds, kinds[kind])
            cpu = (process.cpu_seconds() - before) / (time.perf_counter() - start)
            if set(result["statuses"]) != {"200"}:
                raise SystemExit(f"{name} responded with other statuses than 200: {result['statuses']}")
            cells[f"{kind} {concurrency}"] = {**result, "cpu": round(cpu, 2)}
        return {"cells": cells, "ready_s": round(ready, 2), "rss_mb": round(process.rss_mb(), 1)}


def best_setting(name: str, server: Server, model: Path, seconds: float) -> Setting | None:
    """Returns the setting with the largest product of the rates: each number of clients counts alike."""
    products: dict[Setting | None, float] = {}
    for setting in server.settings if len(server.settings) > 1 else ():
        cells = measure(name, server, setting, model, seconds)["cells"].values()
        rates = [cell["per_second"] for cell in cells]
        print(f"{name}, {setting}: {rates}", file=sys.stderr)
        products[setting] = math.prod(rates)
    return max(products, key=lambda setting: products[setting], default=server.settings[0])


def bare(model: Path, seconds: float) -> dict[str, float]:
    """Returns pictures per second without a server."""
    command = [sys.executable, "-m", "tests.bench.bare", str(model), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def compare(model: Path, peers: str | None, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Returns each server's median over the rounds in each cell, and its ratio to the bare loop."""
    # Choose the settings of the peers.
    servers = find_servers(model, peers)
    settings = {name: best_setting(name, server, model, seconds / 3) for name, server in servers.items()}
    # Measure, in alternating order, so that a drift of the machine favours no server.
    measured: dict[str, list[Any]] = {"bare": [], **{name: [] for name in servers}}
    for number in range(rounds):
        for name in [*measured][:: 1 if number % 2 == 0 else -1]:
            print(f"round {number + 1}: {name}", file=sys.stderr)
            measured[name].append(
                bare(model, seconds) if name == "bare" else measure(name, servers[name], settings[name], model, seconds)
            )
    # Summarize.
    ways = measured["bare"][0]
    rates = {way: statistics.median(run[way] for run in measured["bare"]) for way in ways}
    result: dict[str, Any] = {"bare": {way: round(rate, 1) for way, rate in rates.items()}, "servers": {}}
    for name in servers:
        cells = {
            cell: _summary([run["cells"][cell] for run in measured[name]], max(rates.values()))
            for cell in measured[name][0]["cells"]
        }
        best = min(measured[name], key=lambda run: run["ready_s"])
        result["servers"][name] = {
            "setting": str(settings[name] or "defaults"),
            "cells": cells,
            "ready_s": best["ready_s"],
            "rss_mb": max(run["rss_mb"] for run in measured[name]),
        }
    return result


def _summary(runs: list[dict[str, Any]], bare_rate: float) -> dict[str, Any]:
    median = {key: round(statistics.median(run[key] for run in runs), 2) for key in ("p50_ms", "p99_ms", "cpu")}
    rate = statistics.median(run["per_second"] for run in runs)
    best = max(run["per_second"] for run in runs)
    return {"per_second": round(rate, 1), "best": best, "of_bare": round(rate / bare_rate, 3), **median}


def print_table(result: dict[str, Any]) -> None:
    print(f"{'':24}" + "".join(f"{f'{kind} x{concurrency}':>22}" for kind, concurrency in CELLS))
    for way, rate in result["bare"].items():
        print(f"{'bare, ' + way:<28}{rate:8.1f}/s")
    for name, server in result["servers"].items():
        cells = [server["cells"].get(f"{kind} {concurrency}") for kind, concurrency in CELLS]
        print(f"{name:24}" + "".join(f"{_cell(cell):>22}" for cell in cells))
        print(f"{'':24}ready after {server['ready_s']} s, {server['rss_mb']} MB; {server['setting']}")


def _cell(cell: dict[str, Any] | None) -> str:
    return f"{cell['per_second']:.0f}/s {cell['p50_ms']:.0f}, {cell['p99_ms']:.0f} ms" if cell else "-"


def overload(model: Path, seconds: float, deadline_ms: int = 1000) -> dict[str, Any]:
    """Sends four times the requests that the server can answer, and returns its latencies and statuses."""
    with running(OURS, model, JAXCNN_DEADLINE_MS=str(deadline_ms)) as (process, _):
        capacity = load(8, 5, "raw")["per_second"]
        result = load(8, seconds, "raw", "--rate", 4 * capacity)
        return {"capacity": capacity, "deadline_ms": deadline_ms, "rss_mb": round(process.rss_mb(), 1), **result}


def soak(model: Path, count: int) -> dict[str, Any]:
    """Sends `count` requests, and returns the server's memory over time."""
    curve: list[float] = []
    with running(OURS, model) as (process, _):
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(1):
                curve.append(process.rss_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        result = load(8, 0, "raw", "--count", count)
        is_over.set()
        watcher.join()
        end = process.rss_mb()
    tenths = [round(curve[i * (len(curve) - 1) // 10], 1) for i in range(11)] if curve else []
    return {"count": count, "rss_mb_by_tenths": tenths, "rss_mb_at_end": round(end, 1), **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "server" / "models" / "tiny_imagenet.onnx")
    parser.add_argument("--peers", help="a Python interpreter with onnxruntime, Pillow, and the peers to measure")
    parser.add_argument("--rounds", type=int, default=3, help="0 skips the comparison")
    parser.add_argument("--seconds", type=float, default=4, help="length of a measurement")
    parser.add_argument("--overload", type=float, default=0, metavar="SECONDS", help="length of an overload test")
    parser.add_argument("--soak", type=int, default=0, metavar="COUNT", help="requests of a soak test")
    options = parser.parse_args()
    model = options.model.resolve()
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "model_mb": round(model.stat().st_size / 1e6, 1)}
    if options.rounds:
        result["compare"] = compare(model, options.peers, rounds=options.rounds, seconds=options.seconds)
        print_table(result["compare"])
    if options.overload:
        result["overload"] = overload(model, options.overload)
    if options.soak:
        result["soak"] = soak(model, options.soak)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
