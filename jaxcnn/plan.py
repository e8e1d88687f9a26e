"""Says what a run would take on machines that are not here: `python -m jaxcnn.plan PRESET --topology v5e:16x16`."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import jax

from jaxcnn import cli, options
from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.planning import Plan, plan
from jaxcnn.presets import PRESETS
from jaxcnn.topology import find_topology

PROG = "python -m jaxcnn.plan"
_CLASSES = {"digits": 10, "tiny_imagenet": 200}
"""Classes of the data sets that presets name; others are taken to have as many as ImageNet."""


@dataclass(frozen=True)
class Arguments:
    """The command line of a plan."""

    config: Annotated[Config, options.Unprefixed] = field(default_factory=Config)
    topology: str = "v5e:2x2"
    """Machines to compile for: a slice of TPUs such as v5e:16x16, v5p:4x4x4 or v6e:2x4, the GPUs of a host such as
    h100:8, or hosts and the GPUs of each such as h100:2x8."""
    classes: int | None = None
    """Number of classes. None: as the preset's data set has, 1,000 for pictures of your own."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 2:
            raise UserError(f"classes is {self.classes}; it must be at least 2, or None")


def main(arguments: Sequence[str]) -> None:
    """Compiles the step that the command line describes, and prints what it takes."""
    parsed = parse(arguments)
    # An accelerator that is here may be busy, and is not needed.
    jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    source = parsed.config.data.source
    found = plan(parsed.config, find_topology(parsed.topology), classes=parsed.classes or _CLASSES.get(source, 1_000))
    print(json.dumps(found.to_json()) if parsed.json else describe(found))


def parse(arguments: Sequence[str]) -> Arguments:
    """Reads the command line of a plan.

    Args:
      arguments: the name of a preset, if any, and options that change its settings.

    Raises:
      UserError: an unknown preset, option, value or topology; the message lists the known ones.
    """
    preset = "digits"
    if arguments and not arguments[0].startswith("-"):
        preset, *arguments = arguments
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    # A step is the same with any initial weights.
    config = dataclasses.replace(PRESETS[preset](), init_from=None, freeze="none", fit_head=False)
    config = config.with_model(options.peek(arguments, "model.name", None))
    parsed = options.parse(
        Arguments(config),
        arguments,
        prog=f"{PROG} [PRESET]",
        description="Compiles the training step of a preset for machines that need not be here, and prints whether it "
        "fits their memory, what it takes, and an estimate of its speed. Nothing is measured. Options change the "
        "settings as in training.",
    )
    find_topology(parsed.topology)
    return parsed


def describe(found: Plan) -> str:
    """Describes a plan for people, in some lines."""
    chip = found.topology.chip
    lines = [
        f"{found.topology}, batch of {found.batch_size:,} pictures of {found.resolution}x{found.resolution}, "
        f"{found.parameters / 1e6:.1f} million parameters",
        _describe_memory(found),
    ]
    if not found.fits:
        return "\n".join(lines)
    lines += [
        f"each step and device: {found.flops:.3g} FLOPs, {found.bytes / 1e9:.3g} GB read and written, "
        f"{found.augmentation_share:.1%} of the {'cycles' if found.cycles else 'bytes'} for augmentation",
        f"collectives: {_describe_collectives(found)}",
    ]
    if found.cycle_seconds is not None:
        total = sum(found.cycles.values())
        phases = ", ".join(f"{phase} {cycles / total:.1%}" for phase, cycles in found.cycles.items())
        lines.append(
            f"compiler's estimate: {total / 1e6:,.2f} million cycles, {_milliseconds(found.cycle_seconds)} at "
            f"{(chip.clock or 0) / 1e9:g} GHz ({phases})"
        )
    arithmetic = found.flops / chip.flops
    bound = "arithmetic" if arithmetic >= found.roofline_seconds else "memory"
    lines.append(f"roofline: at least {_milliseconds(found.roofline_seconds)}, bound by {bound}")
    per_device = found.images_per_second / found.topology.devices
    lines.append(
        f"estimate, not measured: {_milliseconds(found.seconds_estimate)} a step, "
        f"{found.images_per_second:,.0f} images/s, {per_device:,.0f} a device, if pictures are read as fast"
    )
    if found.efficiencies:
        curve = ", ".join(f"{devices:,}: {share:.1%}" for devices, share in found.efficiencies.items())
        lines.append(f"estimated efficiency by devices, with as many pictures for each: {curve}")
    return "\n".join(lines)


def _describe_memory(found: Plan) -> str:
    """Returns whether the step fits."""
    memory = f"{found.topology.chip.memory / 1e9:.1f} GB of each device"
    if found.fits:
        return f"fits: {found.peak_bytes / 1e9:.2f} of {memory}"
    needed = f"{found.peak_bytes / 1e9:.1f} GB are needed" if found.peak_bytes else "more is needed"
    return f"does not fit: {needed}, of {memory}; lower --batch_size, or use more devices"


def _describe_collectives(found: Plan) -> str:
    """Returns how many collectives a step has, and what they move."""
    if not found.collectives:
        return "no collectives"
    kinds = [f"{traffic.count:,} {kind} of {_megabytes(traffic.bytes)}" for kind, traffic in found.collectives.items()]
    return f"{', '.join(kinds)}, estimated {_milliseconds(found.collective_seconds)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


if __name__ == "__main__":
    cli.run(main, PROG)
