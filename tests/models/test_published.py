"""The published facts of the networks for photographs, against the networks and against the table in the README."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxcnn.config import ModelConfig
from jaxcnn.models import registry
from jaxcnn.models.network import IMAGENET_MEAN
from jaxcnn.models.pretrained.packages import PACKAGES
from jaxcnn.models.published import PUBLISHED
from jaxcnn.run.cost import picture_flops

README = Path(registry.__file__).with_name("README.md")

LARGER = (
    *("efficientnet_lite1", "efficientnet_lite2", "efficientnet_lite3", "efficientnet_lite4"),
    *("convnext_pico", "convnext_nano", "convnext_tiny", "vit_small", "deit_small"),
)
"""Networks of families with smaller ones, which take longer to trace."""
MILLIONS = {
    **{"efficientnet_lite0": 4.7, "efficientnet_lite1": 5.4, "efficientnet_lite2": 6.1, "efficientnet_lite3": 8.2},
    **{"efficientnet_lite4": 13.0, "resnet18": 11.7, "resnet50": 25.6},
    **{"mobilenet_v3_small": 2.5, "mobilenet_v3_large": 5.5},
    **{"convnext_atto": 3.7, "convnext_femto": 5.2, "convnext_pico": 9.1, "convnext_nano": 15.6},
    **{"convnext_tiny": 28.6, "vit_tiny": 5.7, "vit_small": 22.1, "deit_tiny": 5.7, "deit_small": 22.1},
}
"""Parameters as published."""


def row(name: str) -> list[str]:
    """The row of a network in the table."""
    facts, network = PUBLISHED[name], registry.build(ModelConfig(name=name), classes=1)
    pixels = "ImageNet's"
    if network.pixel_mean != IMAGENET_MEAN:
        pixels = f"{network.pixel_mean[0]:g}, {network.pixel_std[0]:g}"
        assert len({*network.pixel_mean}) == len({*network.pixel_std}) == 1
    return [
        f"`{name}`",
        f"{facts.parameters / 1e6:.2f}",
        f"{facts.operations / 1e6:,.0f}",
        str(facts.side),
        f"{facts.crop:.3g}, {facts.filter}",
        pixels,
        f"`{facts.weights}`, {facts.license}" if facts.weights else "none",
    ]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.run) if name in LARGER else name for name in PUBLISHED]
)
def test_parameters_are_those_published(name: str) -> None:
    network = registry.build(ModelConfig(name=name), classes=1000)
    pictures = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), pictures)
    assert registry.count_parameters(shapes["params"]) == PUBLISHED[name].parameters
    assert PUBLISHED[name].parameters / 1e6 == pytest.approx(MILLIONS[name], abs=0.055)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "convnext_atto", "vit_tiny"])
def test_operations_are_counted_at_the_usual_side(name: str) -> None:
    facts = PUBLISHED[name]
    assert picture_flops(ModelConfig(name=name), classes=1000, side=facts.side) == 2 * facts.operations


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_described_alike(name: str) -> None:
    package, facts = PACKAGES[name], PUBLISHED[name]
    assert (package.name, package.side, package.crop, package.license) == (
        facts.weights, facts.side, facts.crop, facts.license
    )  # fmt: skip


def test_the_readme_has_the_table() -> None:
    lines = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    assert [re.split(r" *\| *", line.strip("| ")) for line in lines] == [row(name) for name in PUBLISHED]
