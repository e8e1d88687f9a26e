"""An environment with the packages that are no part of the lock: MLflow, Weights & Biases, Optuna, datasets.

`JAXCNN_CLIENTS` names its Python. Without it, uv makes one in the cache folder, which downloads a gigabyte once.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("train", "mlflow", "wandb", "optuna")
OTHERS = ("datasets",)
QUIET = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""What keeps the packages from asking for the network."""


def find_python() -> str:
    """Returns the Python of the environment, which is made first if it does not exist."""
    if given := os.environ.get("JAXCNN_CLIENTS"):
        return given
    key = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()[:10]
    folder = Path(f"~/.cache/jaxcnn/clients-{key}").expanduser()
    python = folder / "bin" / "python"
    if not (folder / ".finished").exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        extras = [word for name in EXTRAS for word in ("--extra", name)]
        requirements = ["--requirements", str(ROOT / "pyproject.toml"), *extras, *OTHERS]
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True)
        (folder / ".finished").touch()
    return str(python)


def environment(**variables: str) -> dict[str, str]:
    """Returns the variables of a process that imports the packages and is to find this repository's modules."""
    return os.environ | QUIET | {"PYTHONPATH": str(ROOT)} | variables


def run_in(python: str, arguments: list[str], *, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with arguments in the environment, and checks its exit status."""
    done = subprocess.run(
        [python, *arguments], cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done
