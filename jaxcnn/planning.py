"""Compiles the step of a run for machines that are not here, and describes what it takes there."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType

from jaxcnn.accumulation import check_parts
from jaxcnn.config import Config
from jaxcnn.distributed import AXES
from jaxcnn.errors import UserError
from jaxcnn.hlo import Traffic, count_bytes, count_collectives, count_cycles, read_instructions
from jaxcnn.lowering import abstract_step, largest_resolution, lower_step
from jaxcnn.models import registry
from jaxcnn.roofline import collective_seconds, compute_seconds, efficiencies
from jaxcnn.topology import Topology

_COMPILER_OPTIONS: dict[str, dict[str, bool | int]] = {"tpu": {}, "cuda": {"xla_gpu_autotune_level": 0}}
"""Options by platform: kernels cannot be timed on a GPU that is not there."""
_NEEDED = re.compile(r"memory required [\w ]*\(([\d.]+)([KMG])\) exceeds")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training step takes on each device of a topology.

    All figures but the estimates are the compiler's. If the step does not fit, only its memory is known.

    Attributes:
      topology: the machines.
      batch_size: pictures in a step, on all devices.
      resolution: side of the pictures in pixels.
      parameters: how many the network has.
      peak_bytes: memory that the step needs, with the state.
      fits: whether the device has this memory.
      flops: arithmetic of a step.
      bytes: what it reads from the device's main memory and writes to it. What stays in a TPU's vector memory does not
        count.
      collectives: what devices exchange, by kind.
      cycles: what the compiler expects, by phase of the step; empty if it makes no estimate.
      traffic: the same bytes, by phase of the step.
    """

    topology: Topology
    batch_size: int
    resolution: int
    parameters: int
    peak_bytes: int
    fits: bool
    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[str, Traffic] = dataclasses.field(default_factory=dict)
    cycles: Mapping[str, int] = dataclasses.field(default_factory=dict)
    traffic: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def cycle_seconds(self) -> float | None:
        """Time of a step by the compiler's cycles, without collectives; None if it makes no estimate."""
        total = sum(self.cycles.values())
        return total / self.topology.chip.clock if total and self.topology.chip.clock else None

    @property
    def roofline_seconds(self) -> float:
        """The least time of a step, without collectives."""
        return compute_seconds(self.topology.chip, flops=self.flops, bytes=self.bytes)

    @property
    def collective_seconds(self) -> float:
        """Estimated time of the collectives of a step."""
        return collective_seconds(self.topology.chip, self.collectives, devices=self.topology.devices)

    @property
    def seconds_estimate(self) -> float:
        """Estimated time of a step."""
        return self.compute_seconds + self.collective_seconds

    @property
    def compute_seconds(self) -> float:
        """Time of a step without collectives: by the compiler's cycles if it gives them, at least the roofline's."""
        return max(self.cycle_seconds or 0.0, self.roofline_seconds)

    @property
    def images_per_second(self) -> float:
        """Estimated pictures a second, on all devices."""
        return self.batch_size / self.seconds_estimate

    @property
    def augmentation_share(self) -> float:
        """Share of the cycles, or of the bytes where there are no cycles, that change pictures at random."""
        by_phase = self.cycles or self.traffic
        return by_phase["augmentation"] / max(sum(by_phase.values()), 1)

    @property
    def efficiencies(self) -> dict[int, float]:
        """Estimated share of the time that devices compute, by their number; empty for a single device."""
        if self.topology.devices == 1:
            return {}
        return efficiencies(self.topology.chip, self.collectives, seconds=self.compute_seconds)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON has them; what is not known of a step that does not fit is None."""
        known = self.fits
        return {
            "topology": self.topology.name,
            "devices": self.topology.devices,
            "batch_size": self.batch_size,
            "resolution": self.resolution,
            "parameters": self.parameters,
            "fits": self.fits,
            "peak_bytes": self.peak_bytes,
            "device_bytes": self.topology.chip.memory,
            "flops": self.flops if known else None,
            "bytes": self.bytes if known else None,
            "collectives": {kind: dataclasses.asdict(traffic) for kind, traffic in self.collectives.items()}
            if known
            else None,
            "cycles": dict(self.cycles) or None,
            "augmentation_share": self.augmentation_share if known else None,
            "roofline_seconds": self.roofline_seconds if known else None,
            "collective_seconds_estimate": self.collective_seconds if known else None,
            "seconds_estimate": self.seconds_estimate if known else None,
            "images_per_second_estimate": self.images_per_second if known else None,
            "efficiency_estimate": self.efficiencies if known else None,
        }


def plan(config: Config, topology: Topology, *, classes: int) -> Plan:
    """Compiles the step of a run for a topology, in the epoch with the largest pictures.

    Args:
      config: the settings.
      topology: the machines.
      classes: number of classes.

    Raises:
      UserError: the run takes no steps, the batch or the state cannot be divided, or the compiler is not installed.
    """
    _check(config, topology, classes=classes)
    shape = (topology.devices // config.parallel.fsdp, config.parallel.fsdp)
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=topology.open())
    lowered = lower_step(config, classes=classes, mesh=mesh)
    described: dict[str, Any] = {
        "topology": topology,
        "batch_size": config.batch_size,
        "resolution": largest_resolution(config),
        "parameters": _count_parameters(config, classes=classes),
    }
    try:
        compiled = lowered.compile(compiler_options=_COMPILER_OPTIONS[topology.chip.platform])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Plan(**described, fits=False, peak_bytes=read_needed_bytes(str(error)))
    instructions = read_instructions(compiled.as_text() or "")
    traffic, cycles, peak = count_bytes(instructions), count_cycles(instructions), _peak_bytes(compiled)
    return Plan(
        **described,
        fits=peak <= topology.chip.memory,
        peak_bytes=peak,
        flops=_count_flops(compiled, config, classes=classes, devices=topology.devices),
        bytes=float(sum(traffic.values())),
        collectives=count_collectives(instructions),
        cycles=cycles if any(cycles.values()) else {},
        traffic=traffic,
    )


def _check(config: Config, topology: Topology, *, classes: int) -> None:
    """Raises a `UserError` if there is no step to compile, or the batch or the state cannot be divided."""
    size, devices, parallel = config.batch_size, topology.devices, config.parallel
    if config.is_frozen:
        raise UserError("freeze is backbone, so that no steps are taken; give --freeze none to plan the training")
    if config.distill.teachers:
        raise UserError(
            "distill.teachers predict beside the step, which a plan does not compile; give --distill.teachers without "
            "a name to plan the step alone"
        )
    if size % devices:
        raise UserError(f"batch_size is {size}, which cannot be divided among {topology}; give a multiple of {devices}")
    if devices % parallel.fsdp:
        raise UserError(f"parallel.fsdp is {parallel.fsdp}, which does not divide {topology}")
    check_parts(config, classes=classes, devices=devices)


def _count_parameters(config: Config, *, classes: int) -> int:
    _, (state, *_) = abstract_step(config, classes=classes, mesh=None)
    return registry.count_parameters(state.variables["params"])


def _count_flops(compiled: jax.stages.Compiled, config: Config, *, classes: int, devices: int) -> float:
    """Counts the arithmetic of a step on a device.

    The compiler's count has the body of a loop once, and the compiler for a GPU that is not there does not count. Then
    it is the arithmetic of a traced step without the loop, before any compiler changes it.
    """
    if config.parallel.accumulate == 1:
        with contextlib.suppress(NotImplementedError, jax.errors.JaxRuntimeError):
            if counted := dict(compiled.cost_analysis() or {}).get("flops"):
                return float(counted)
    whole = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, accumulate=1))
    cost: Any = lower_step(whole, classes=classes, mesh=None).cost_analysis()
    return float(cost["flops"]) / devices


def _peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the memory of a program with its arguments and results; results may take the place of arguments."""
    memory: Any = compiled.memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(arrays + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)


def read_needed_bytes(message: str) -> int:
    """Returns the bytes that a program needs by the error of a compiler that found no room for it; 0 if unknown."""
    found = _NEEDED.search(message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0
