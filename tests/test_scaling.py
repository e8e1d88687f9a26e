"""The benchmark of scaling, small: it ends in one JSON object with all figures, and draws them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import scaling

ROOT = Path(__file__).parent.parent


@pytest.mark.run
def test_it_measures_and_draws(tmp_path):
    plot = tmp_path / "scaling.svg"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.scaling", "--smoke", "--plot", str(plot)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["processes"]["at"] == [2]
    (point,) = found["examples"]["points"]
    assert 0 < point["step_seconds"] < point["start_seconds"] <= point["first_start_seconds"]
    assert 0 < point["first_mb"] <= point["peak_mb"]
    assert min(found["decoding"].values()) > 0
    assert plot.read_text().count("seconds of a step") == 2


def test_what_a_linear_law_predicts():
    points = [{"step_seconds": 1.0}, {"step_seconds": 3.0}]
    for name, linear in (("devices", [1, 0.5]), ("batch", [1.5, 3]), ("classes", [1, 1])):
        scaling.add_linear(name, [8, 16], points)
        assert [point["linear_seconds"] for point in points] == linear
