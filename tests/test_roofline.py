"""Estimates of time, by hand."""

import dataclasses

import pytest

from jaxcnn.hlo import Traffic
from jaxcnn.roofline import collective_seconds, compute_seconds, efficiencies
from jaxcnn.topology import CHIPS

CHIP = dataclasses.replace(
    CHIPS["h100"], flops=1e12, bandwidth=1e9, group=8, link=1e6, network=1e5, latency=1.0, network_latency=10.0
)


def test_a_step_is_bound_by_arithmetic_or_by_memory():
    assert compute_seconds(CHIP, flops=3e12, bytes=1e9) == 3
    assert compute_seconds(CHIP, flops=1e12, bytes=5e9) == 5


@pytest.mark.parametrize(
    ("kind", "devices", "seconds"),
    [
        ("all-reduce", 1, 0),
        ("all-reduce", 4, 2 * (0.75 + 2)),
        ("all-gather", 4, 0.75 + 2),
        ("all-reduce", 16, 2 * (7 / 8 + (1 / 8) * (1 / 2) * 10 + 3 + 10)),
    ],
)
def test_collectives_move_arrays_inside_of_groups_then_between_them(kind, devices, seconds):
    assert collective_seconds(CHIP, {kind: Traffic(1, 10**6)}, devices=devices) == pytest.approx(seconds)


def test_many_small_collectives_cost_more_than_a_large_one():
    many = collective_seconds(CHIP, {"all-reduce": Traffic(50, 1000)}, devices=8)
    assert many > 40 * collective_seconds(CHIP, {"all-reduce": Traffic(1, 1000)}, devices=8)


def test_the_efficiency_falls_with_the_number_of_devices():
    shares = efficiencies(CHIP, {"all-reduce": Traffic(1, 10**6)}, seconds=10.0)
    assert list(shares) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert shares[1] == 1
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares[4] == pytest.approx(10 / 15.5)
