"""The machines that a step can be compiled for ahead of time, which need not be there.

JAX compiles for TPUs with the library `libtpu`, and for GPUs with its plugin for CUDA; both are packages that install
on any Linux machine. The rates and the memory of a chip are its manufacturer's; links and latencies are assumptions.
"""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxcnn.errors import UserError
from jaxcnn.extras import install_command


@dataclass(frozen=True, kw_only=True)
class Chip:
    """An accelerator, with the figures that estimates need.

    Attributes:
      name: for people.
      platform: what JAX calls its kind.
      flops: multiplications and additions in bfloat16 a second, without sparsity.
      memory: bytes that a program can use: what XLA leaves of a TPU's memory, and the share of a GPU's that JAX takes
        by default.
      bandwidth: bytes a second from and to this memory.
      clock: cycles a second, by which the compiler's estimate becomes a time; None if it makes no estimate.
      group: most chips that are joined by fast links: a slice, or a host.
      link: bytes a second that a chip sends to the others of its group.
      network: bytes a second that it sends to other groups.
      latency: seconds of each exchange with a chip of the group.
      network_latency: seconds of each exchange with another group.
    """

    name: str
    platform: str
    flops: float
    memory: int
    bandwidth: float
    clock: float | None = None
    group: int
    link: float
    network: float
    latency: float
    network_latency: float


CHIPS = {
    "v5e": Chip(
        name="TPU v5e",
        platform="tpu",
        flops=197e12,
        memory=int(15.75 * 2**30),
        bandwidth=819e9,
        clock=1.5e9,
        group=256,
        link=90e9,
        network=3.1e9,
        latency=1e-6,
        network_latency=2e-5,
    ),
    "v5p": Chip(
        name="TPU v5p",
        platform="tpu",
        flops=459e12,
        memory=int(95.74 * 2**30),
        bandwidth=2765e9,
        clock=1.75e9,
        group=4096,
        link=270e9,
        network=6.2e9,
        latency=1e-6,
        network_latency=2e-5,
    ),
    "v6e": Chip(
        name="TPU v6e",
        platform="tpu",
        flops=918e12,
        memory=int(31.25 * 2**30),
        bandwidth=1640e9,
        clock=1.75e9,
        group=256,
        link=180e9,
        network=12.5e9,
        latency=1e-6,
        network_latency=2e-5,
    ),
    "h100": Chip(
        name="NVIDIA H100 SXM",
        platform="cuda",
        flops=989e12,
        memory=int(0.75 * 84_942_979_072),
        bandwidth=3352e9,
        group=8,
        link=450e9,
        network=50e9,
        latency=4e-6,
        network_latency=1e-5,
    ),
}
"""Chips by the names that topologies begin with."""

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
_HOSTS = "HOSTSx8"
"""Stands for any number of hosts."""
SHAPES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES, "h100": ("1", "2", "4", "8", "2x8", "4x8", _HOSTS)}
"""Slices of each TPU, and devices, or hosts and devices of each, of a GPU."""

_TARGET_CONFIG = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000  device_memory_size: 84942979072  l2_cache_size: 52428800
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  device_address_bits: 64  ecc_enabled: true
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"  dnn_version: "9.12.0"
  device_interconnect_info { active_links: 18 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA's compiler for GPUs has to know of the H100: an XLA message `GpuTargetConfigProto` as text."""

_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Variables by which libtpu looks for no TPU, and lets other processes load it as well."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Some chips of one kind and how they are connected.

    Attributes:
      name: as on the command line, such as `v5e:2x2`.
      chip: the kind of the chips.
      shape: sides of a slice of TPUs; for GPUs the number of hosts, and of GPUs in each.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        """Names it for people, such as `4 x TPU v5e (v5e:2x2)`."""
        return f"{self.devices} x {self.chip.name} ({self.name})"

    def open(self) -> list[Any]:
        """Returns devices that programs can be compiled for, but not run on.

        Raises:
          UserError: the compiler is not installed.
        """
        from jax.experimental import topologies

        if self.chip.platform == "tpu":
            _check_installed("libtpu", extra="tpu", topology=self.name)
            with _environment(_TPU_ENVIRONMENT):
                return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name).devices)
        _check_installed("jax_plugins.xla_cuda13", extra="cuda", topology=self.name)
        hosts, count = self.shape
        return list(
            topologies.get_topology_desc(
                platform="cuda", target_config=_TARGET_CONFIG, topology=f"1x{hosts}x{count}"
            ).devices
        )


def find_topology(name: str) -> Topology:
    """Returns the topology of a name such as `v5e:16x16` or `h100:2x8`.

    Raises:
      UserError: no topology has that name; the message lists the known ones.
    """
    kind, _, text = name.partition(":")
    is_listed = text in SHAPES.get(kind, ()) and text != _HOSTS
    if not is_listed and not (kind == "h100" and re.fullmatch(r"[1-9]\d{0,2}x8", text, re.ASCII)):
        known = "; ".join(f"{kind}:{', '.join(shapes)}" for kind, shapes in SHAPES.items())
        raise UserError(f"there is no topology {name!r}; there are {known}")
    shape = tuple(map(int, text.split("x")))
    # One host of GPUs is given by the number of its GPUs.
    return Topology(name=name, chip=CHIPS[kind], shape=(1, *shape) if len(shape) == 1 else shape)


def _check_installed(module: str, *, extra: str, topology: str) -> None:
    """Raises a `UserError` if a compiler is not installed, with the command that installs it."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Its parent package is missing.
        found = False
    if not found:
        raise UserError(
            f"{topology} needs a compiler that is not installed; install it with: {install_command(extra)} "
            f"(for jax {importlib.metadata.version('jax')})"
        )


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables in the context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
