"""Estimates how long a step takes on devices that nobody has here, and how that changes with their number.

A step can be no faster than its arithmetic at the chip's highest rate, nor than its reads and writes at the rate of its
memory (the roofline, Williams et al. 2009). The slower of the two bounds it; a real step takes longer.
"""

import math
from collections.abc import Mapping

from jaxcnn.hlo import Traffic
from jaxcnn.topology import Chip

DEVICES = tuple(2**exponent for exponent in range(11))
"""Numbers of devices, 1 to 1,024, for which the efficiency is estimated."""


def compute_seconds(chip: Chip, *, flops: float, bytes: float) -> float:
    """Returns the least time that a device needs for its arithmetic and its memory, without collectives."""
    return max(flops / chip.flops, bytes / chip.bandwidth)


def collective_seconds(chip: Chip, collectives: Mapping[str, Traffic], *, devices: int) -> float:
    """Estimates the time of a step's collectives, one after the other.

    An all-reduce is a reduce-scatter and an all-gather; each moves (n - 1) / n of the arrays through every device
    (Patarasuk and Yuan 2009), and exchanges log2(n) times. Beyond a group, each device first joins its share with those
    of the same position in the other groups.

    Args:
      chip: the kind of the devices.
      collectives: what a step has of them, by kind.
      devices: how many take part.
    """
    inside = min(devices, chip.group)
    groups = math.ceil(devices / chip.group)
    total = 0.0
    for kind, traffic in collectives.items():
        directions = 2 if kind == "all-reduce" else 1
        moving = traffic.bytes * (inside - 1) / inside / chip.link
        moving += traffic.bytes / inside * (groups - 1) / groups / chip.network
        waiting = math.log2(inside) * chip.latency + math.log2(groups) * chip.network_latency
        total += directions * (moving + traffic.count * waiting)
    return total


def efficiencies(chip: Chip, collectives: Mapping[str, Traffic], *, seconds: float) -> dict[int, float]:
    """Estimates the share of their time that devices compute, by their number.

    Each device has the same part of a batch throughout, and no collective runs beside arithmetic: the worst case.

    Args:
      chip: the kind of the devices.
      collectives: what a step has of them, by kind.
      seconds: time that a device computes in a step.
    """
    return {
        devices: seconds / (seconds + collective_seconds(chip, collectives, devices=devices)) for devices in DEVICES
    }
