"""onnxruntime sends usage data to its maker unless a program turns that off before it imports it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", ["server.model", "export.verify", "jaxcnn.onnx_file"])
def test_onnxruntime_keeps_no_device_identifier(package, tmp_path):
    # It keeps the identifier and the events in the home directory, from the first import on.
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    program = f"import {package}; import onnxruntime; onnxruntime.get_available_providers()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.rglob("*DeveloperTools*")) == []
