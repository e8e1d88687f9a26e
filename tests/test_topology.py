"""Names of machines, and compilers for them that may be missing."""

import importlib.util
import os
import re

import pytest
from jax.experimental import topologies

from jaxcnn import topology
from jaxcnn.errors import UserError
from jaxcnn.extras import install_command
from jaxcnn.topology import SHAPES, find_topology


@pytest.mark.parametrize(
    ("name", "devices", "shape"),
    [
        ("v5e:2x2", 4, (2, 2)),
        ("v5e:16x16", 256, (16, 16)),
        ("v6e:1x1", 1, (1, 1)),
        ("v5p:4x4x4", 64, (4, 4, 4)),
        ("h100:8", 8, (1, 8)),
        ("h100:2x8", 16, (2, 8)),
        ("h100:128x8", 1024, (128, 8)),
    ],
)
def test_a_name_says_how_many_chips_there_are(name, devices, shape):
    topology = find_topology(name)
    assert (topology.devices, topology.shape) == (devices, shape)
    assert str(topology).startswith(f"{devices} x ")


@pytest.mark.parametrize(
    "name",
    [
        *("", "v5e", "v5e:", "v5e:3x3", "v5e:32x32", "v5p:2x2", "v9:2x2"),
        *("h100:16", "h100:0x8", "h100:2x4", "h100:HOSTSx8", "2x2"),
    ],
)
def test_an_unknown_topology_lists_those_that_there_are(name):
    with pytest.raises(
        UserError, match=f"^there is no topology '{name}'; there are v5e:1x1, 2x2, .*; h100:1, 2, "
    ) as caught:
        find_topology(name)
    assert "\n" not in str(caught.value)


def test_every_listed_topology_is_known():
    for kind, shapes in SHAPES.items():
        for shape in shapes:
            assert find_topology(f"{kind}:{shape.replace('HOSTS', '3')}").devices >= 1


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h100:8", "cuda")])
def test_a_missing_compiler_is_named_with_the_command_that_installs_it(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = re.escape(install_command(extra))
    with pytest.raises(UserError, match=f"^{name} needs a compiler that is not installed; install it with: {command} "):
        find_topology(name).open()


@pytest.mark.parametrize("before", [None, "mine"])
def test_the_environment_of_a_compiler_ends_with_it(before, monkeypatch):
    name, value = next(iter(topology._TPU_ENVIRONMENT.items()))
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)

    def fail(**_):
        raise RuntimeError(os.environ[name])

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    monkeypatch.setattr(topology, "_check_installed", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match=rf"^{re.escape(value)}$"):
        find_topology("v5e:4x4").open()
    assert os.environ.get(name) == before


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jaxcnn[tpu]'")
def test_no_environment_variable_stays_set():
    before = dict(os.environ)
    assert len(find_topology("v5e:4x4").open()) == 16
    assert dict(os.environ) == before
