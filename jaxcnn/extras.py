"""The extras of the package, such as `mlflow`: how users install the packages of one."""

import importlib.metadata
import shlex
from pathlib import Path

CLONE = Path(__file__).parents[1]
"""The clone, if this is one."""


def install_command(extra: str) -> str:
    """Returns the command that installs the packages of an extra, such as `pip install 'jaxcnn[mlflow]'`.

    The package is on no index: pip knows its name only where it is installed. In a clone with nothing but the packages
    of the lock file, the command names the clone.
    """
    try:
        importlib.metadata.distribution("jaxcnn")
    except importlib.metadata.PackageNotFoundError:
        if (CLONE / "pyproject.toml").exists():
            return f"pip install {shlex.quote(f'{CLONE}[{extra}]')}"
    return f"pip install 'jaxcnn[{extra}]'"
