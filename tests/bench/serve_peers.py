"""What the server benchmark compares: how each server is started, and the settings that it is tried with."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.peer_model import Setting

PORT = 8199
OURS = [sys.executable, "-m", "uvicorn", "server.app:app", "--port", str(PORT)]
SETTINGS = (
    Setting(workers=2, threads=2),
    Setting(workers=2, threads=1),
    Setting(workers=2, threads=1, batch=4, wait_ms=2),
)
BENTOML = (
    Setting(workers=1, threads=2),
    Setting(workers=1, threads=1),
    Setting(workers=2, threads=1),
    Setting(workers=2, threads=1, batch=4),
)


@dataclass(frozen=True)
class Server:
    """A server and what it is measured with."""

    command: list[str]
    settings: tuple[Setting | None, ...] = (None,)
    """What the peers' documentation offers for such a load; the best one is compared."""
    kinds: Mapping[str, str] = field(default_factory=lambda: {"json": "json"})
    """Kind of the requests in each column of the table."""


def find_servers(model: Path, peers: str | None) -> dict[str, Server]:
    """Returns jaxcnn, and those peers that the interpreter `peers` has, by name."""
    ours = Server(OURS, kinds={"raw": "raw", "json": "json"})
    if peers is None:
        return {"jaxcnn": ours}
    arguments = [str(PORT), str(model)]
    bentoml = [peers, "-m", "bentoml", "serve", "--working-dir", "tests/bench", "peer_bentoml:Classifier"]
    litserve, mlserver = ([peers, f"tests/bench/peer_{name}.py", *arguments] for name in ("litserve", "mlserver"))
    found = {
        "litserve": ("LitServe", Server(litserve, SETTINGS)),
        "bentoml": ("BentoML", Server([*bentoml, "--port", str(PORT)], BENTOML)),
        "mlserver": ("MLServer", Server(mlserver, SETTINGS, kinds={"json": "infer"})),
        "tensorflow": ("original", Server([peers, "tests/bench/peer_flask.py", str(PORT)])),
    }
    return {"jaxcnn": ours} | {name: server for package, (name, server) in found.items() if _has(peers, package)}


def _has(python: str, package: str) -> bool:
    """Whether an interpreter has a package."""
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", find], check=False).returncode == 0
