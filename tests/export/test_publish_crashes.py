"""Power cuts at any moment of an export: the model is the older one or the new one, and both can be used."""

import json
from pathlib import Path

import numpy as np
import pytest
from crashes import SCHEDULES, check_replay, crash_often, record
from runs import PICTURES

from jaxcnn.onnx_file import open_model
from server import model
from server.integrity import read_description

pytestmark = pytest.mark.drill

PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
import export
from runs import PICTURES
for features in (False, True):
    export.export_workdir(Path(sys.argv[1]), Path(sys.argv[2]) / "m.onnx", pictures=PICTURES, features=features)
    print("features" if features else "plain", flush=True)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, run):
    """The folder that the program wrote to, and its calls."""
    root, log = tmp_path_factory.mktemp("traced"), tmp_path_factory.mktemp("log") / "calls"
    return root, record(PROGRAM, run, root, log=log)


def test_the_calls_add_up_to_the_files(recorded, tmp_path):
    root, calls = recorded
    assert check_replay(root, calls, tmp_path) == [b"plain", b"features"]
    assert (root / "m.onnx").is_file()


def test_every_power_cut_leaves_a_model_that_can_be_used(recorded, tmp_path):
    root, calls = recorded
    seen = set()
    for seed, folder, printed in crash_often(root, calls, tmp_path, schedules=SCHEDULES):
        path = folder / "m.onnx"
        if not path.exists():
            assert not printed, seed
            continue
        # The server starts with it, after it has compared it with its checksum and its example, and so do commands.
        served = model.load(path, max_batch=1, threads=1)
        assert set(open_model(path).outputs) == set(served.outputs), seed
        assert np.isfinite(served.run(PICTURES, ["logits"])["logits"]).all(), seed
        assert b"features" not in printed or "features" in served.outputs, seed
        seen.add("features" in served.outputs)
        # A finished export has its description; no description is of another file.
        description = read_description(path)
        assert description is not None or len(printed) < 2, seed
        check_sidecars(folder, seed)
    assert SCHEDULES < 50 or seen == {False, True}


def check_sidecars(folder: Path, seed: str) -> None:
    """Checks that no file beside the model is half of one."""
    for path in folder.glob("m/[!.]*"):
        if path.suffix == ".json":
            assert json.loads(path.read_text()), seed
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(len(arrays[name]) for name in ("image", "logits")), seed
        else:
            assert path.read_text().endswith("\n"), seed
