"""onnxruntime sends usage data to its maker unless a program turns that off before it imports it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def written_at_home(program, home):
    """Runs a program that imports onnxruntime; returns the files that it leaves in an empty home directory."""
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    program += "; import onnxruntime; onnxruntime.get_available_providers()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    return {path.relative_to(home) for path in home.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """What onnxruntime keeps unless it is asked not to: an identifier, and events."""
    if not (found := written_at_home("pass", tmp_path_factory.mktemp("home"))):
        pytest.skip("this onnxruntime keeps nothing")
    return found


@pytest.mark.parametrize("package", ["server.model", "export.verify", "jaxcnn.onnx_file"])
def test_onnxruntime_keeps_no_device_identifier(package, usual, tmp_path):
    # It would, from the first import on.
    assert written_at_home(f"import {package}", tmp_path).isdisjoint(usual)
