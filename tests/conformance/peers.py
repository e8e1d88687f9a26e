"""The runtimes, each with an environment that is created in a cache folder outside the project."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

RUNNERS = Path(__file__).parent / "runners"


class UnavailableError(Exception):
    """A runtime cannot be installed on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Peer:
    """A runtime.

    Attributes:
      name: name in the table.
      runner: the program in `runners` that runs a folder of models in it.
      packages: packages to install.
      python: interpreters that it has a build for, the preferred one first; empty for a runtime in JavaScript.
    """

    name: str
    runner: str
    packages: tuple[str, ...]
    python: tuple[str, ...] = field(default=(sys.executable,))


PEERS = (
    Peer("onnxruntime 1.17.3", "onnxruntime_.py", ("onnxruntime==1.17.3", "numpy<2")),
    Peer("onnxruntime latest", "onnxruntime_.py", ("onnxruntime", "numpy")),
    Peer("onnxruntime-web, Node", "node.mjs", ("onnxruntime-web",), ()),
    Peer("onnxruntime-web, Chromium", "browser.mjs", ("onnxruntime-web", "puppeteer-core"), ()),
    Peer("OpenVINO 2024.0", "openvino_.py", ("openvino==2024.0.0", "numpy<2"), ("python3.11", "python3.10")),
    Peer("OpenVINO latest", "openvino_.py", ("openvino", "numpy")),
    Peer("OpenCV DNN 4.10", "opencv_.py", ("opencv-python-headless==4.10.0.84", "numpy<2.3")),
    Peer("OpenCV DNN 5", "opencv_.py", ("opencv-python-headless>=5,<6", "numpy")),
    Peer("tract", "tract_.py", ("tract>=0.23", "numpy")),
)


def command(peer: Peer, cache: Path) -> list[str]:
    """Returns the command that runs a runtime's program, after creating its environment if there is none.

    Raises:
      UnavailableError: there is no interpreter or browser for it, or it cannot be installed.
    """
    key = hashlib.sha256(json.dumps([peer.packages, peer.python]).encode()).hexdigest()[:10]
    folder = cache / f"{peer.runner.partition('.')[0].strip('_')}-{key}"
    if peer.python:
        _make(folder, lambda: _install_python(peer, folder))
        return [str(folder / "bin" / "python"), str(RUNNERS / peer.runner)]
    _make(folder, lambda: _install_node(peer, folder))
    program = folder / peer.runner
    # Node looks up modules beside the program.
    for path in RUNNERS.glob("*.mjs"):
        shutil.copy(path, folder)
    return [_find("node"), str(program)]


def browser() -> str:
    """Returns the path of a Chromium.

    Raises:
      UnavailableError: Chromium is not installed.
    """
    return _find("chromium", "chromium-browser", "google-chrome", "chrome")


def _make(folder: Path, install: Callable[[], None]) -> None:
    finished = folder / ".finished"
    if finished.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    install()
    finished.touch()


def _install_python(peer: Peer, folder: Path) -> None:
    interpreter = _find(*peer.python)
    _run([interpreter, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.packages])


def _install_node(peer: Peer, folder: Path) -> None:
    (folder / "package.json").write_text('{"private": true}')
    _run([_find("npm"), "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder), *peer.packages])


def _find(*names: str) -> str:
    for name in names:
        path = shutil.which(name)
        if path is not None and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    raise UnavailableError(f"{' or '.join(names)} is not installed")


def _run(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UnavailableError(f"{' '.join(arguments)} failed: {said[-1] if said else done.returncode}")
