"""Which precision is faster on a CPU, measured once for each processor and kept in the cache folder; exact products.

Instructions for bfloat16 do not settle it: on a Xeon with AVX512-BF16 whose AMX the hypervisor hides, networks train a
tenth to a fifth slower in bfloat16 than in float32; with AMX they train several times as fast.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcnn.ops.compiler import compiler_options, has_onednn
from jaxcnn.ops.conv import conv
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.norm import RELU, batch_norm_act

CACHE = "~/.cache/jaxcnn"
"""Folder of the measurements, one file for each processor."""
ROUNDS = 5
"""Runs of each precision, in turns; the fastest counts."""

type Run = Callable[[], object]


class Measured(NamedTuple):
    """Seconds of a training step of two convolutions and a normalisation.

    Attributes:
      float32: seconds in float32.
      bfloat16: seconds in bfloat16.
    """

    float32: float
    bfloat16: float

    @property
    def faster(self) -> str:
        """The faster precision, `float32` or `bfloat16`."""
        return "bfloat16" if self.bfloat16 < self.float32 else "float32"

    def __str__(self) -> str:
        """One line for the user."""
        return (
            f"precision {self.faster}: two convolutions take {self.float32 * 1000:.1f} ms in float32 and "
            f"{self.bfloat16 * 1000:.1f} ms in bfloat16 here"
        )


@functools.cache
def measured_here() -> Measured | None:
    """The measurement of this machine; None where float32 needs none, as there are no instructions for bfloat16.

    The first call on a machine takes about a second.
    """
    if not has_onednn("bfloat16"):
        return None
    path = Path(CACHE).expanduser() / f"precision-{_machine()}.json"
    kept = _read(path)
    if kept is None:
        kept = _measure()
        _write(path, kept)
    return kept


def exact_products() -> AbstractContextManager[None]:
    """Context in which products of float32 numbers are computed in float32, as on a CPU.

    By default TPUs compute them in bfloat16, and GPUs in TensorFloat-32, of 8 and 11 bits.
    """
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    exact: AbstractContextManager[None] = jax.default_matmul_precision("highest")
    return exact


def _machine() -> str:
    """A key of what the speed depends on: the processor, its instructions, the number of cores, and JAX."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    # Every core repeats the same lines; others, such as the clock's, change all the time.
    processor = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    text = json.dumps([processor, platform.machine(), os.cpu_count(), jax.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> Measured | None:
    try:
        seconds = json.loads(path.read_text())
        return Measured(float(seconds["float32"]), float(seconds["bfloat16"]))
    except (OSError, ValueError, KeyError, TypeError):
        # It was never measured, or the file is damaged and will be replaced.
        return None


def _write(path: Path, measured: Measured) -> None:
    """Keeps a measurement; where that fails, such as on a read-only disk, the next process measures again."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(measured._asdict()) + "\n")
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def _measure() -> Measured:
    """Runs the step in both precisions in turns, so that other load on the machine affects both."""
    runs = {precision: _prepare(precision) for precision in Measured._fields}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for precision, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())  # type: ignore[no-untyped-call]
            best[precision] = min(best[precision], time.perf_counter() - begin)
    return Measured(**best)


def _prepare(precision: str) -> Run:
    """A compiled step, warmed up, of a 3x3 convolution, a normalisation and a 1x1 convolution."""
    x = jnp.linspace(-1, 1, 32 * 16 * 16 * 64).reshape(32, 16, 16, 64).astype(precision)
    kernels = jnp.full((3, 3, 64, 64), 0.01), jnp.full((1, 1, 64, 64), 0.01)

    def loss(x: Array, first: Array, second: Array) -> Float[Array, ""]:
        y = batch_norm_act(conv(x, first), jnp.ones(64), jnp.zeros(64), epsilon=1e-5, activation=RELU).y
        return jnp.square(conv(y, second).astype(jnp.float32)).mean()

    def gradients(*arrays: Array) -> object:
        with use_cpu_kernels(True):
            return jax.grad(loss, argnums=(0, 1, 2))(*arrays)

    step = jax.jit(gradients, compiler_options=compiler_options())
    jax.block_until_ready(step(x, *kernels))  # type: ignore[no-untyped-call]
    return functools.partial(step, x, *kernels)
