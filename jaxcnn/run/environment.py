"""The environment of a session: versions, hardware and command line."""

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

from jaxcnn.cores import count_cores
from jaxcnn.version import describe_version


def environment() -> dict[str, str]:
    """Versions, hardware and command line of this process, and the devices of all processes."""
    # Reading a workdir needs no JAX.
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    return {
        # Reports show it: no password of an address, such as that of --log.mlflow.
        "command": re.sub(r"(?<=://)[^/\s@]+(?=@)", "***", " ".join(sys.argv)),
        "directory": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(count_cores()),
        "devices": ", ".join(device.device_kind for device in jax.devices()),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "jaxcnn": describe_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    """The processor's marketing name, which `platform.processor` leaves out on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
