"""Describes a plan in words."""

from jaxcnn.planning import Plan


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
