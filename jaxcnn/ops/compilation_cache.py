"""Compiled programs on disk, so that the second start of a run need not compile its steps again."""

import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax

from jaxcnn.ops.compiler import has_onednn

BYTES = 2 * 2**30
"""Most that the programs for one kind of machine take; those that were not used for longest are removed."""
LEAST_SECONDS = 0.5
"""Programs that are compiled faster are not kept."""


def keep_compilations(folder: Path) -> bool:
    """Lets JAX keep what it compiles in a folder, and load it from there.

    Nothing is kept where XLA computes with oneDNN, since it cannot write down programs that call it, nor does anything
    change if the user has set JAX_COMPILATION_CACHE_DIR.

    Returns:
      Whether programs are kept in the folder.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or has_onednn("float32"):
        return False
    settings = {
        "jax_compilation_cache_dir": str(folder / describe_processor()),
        "jax_compilation_cache_max_size": BYTES,
        "jax_persistent_cache_min_compile_time_secs": LEAST_SECONDS,
    }
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]
    # A disk that is full, or a folder that may not be written, costs time but no result.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    return True


def describe_processor() -> str:
    """Returns a name for the instructions of this processor: JAX does not distinguish processors by them.

    A program that was compiled for other instructions could end the process, such as in a home directory that several
    machines share.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
    known = "\n".join([platform.system(), platform.machine(), platform.processor(), *features])
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
