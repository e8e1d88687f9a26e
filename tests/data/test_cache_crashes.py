"""Power cuts at any moment while pictures are decoded: the cache never has other pictures, and is usable again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crashes import History, crash_often, record
from PIL import Image

from jaxcnn.data.cache import load_cached
from jaxcnn.data.sources.folder import folder_source

pytestmark = pytest.mark.slow

SCHEDULES = int(os.environ.get("JAXCNN_SCHEDULES", "200"))
PROGRAM = """
import sys
from pathlib import Path
from jaxcnn.data.cache import load_cached
from jaxcnn.data.sources.folder import folder_source
load_cached(folder_source(sys.argv[1]), size=8, cache_dir=Path(sys.argv[2]))
print("decoded", flush=True)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(8):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 90, 250 - 20 * number)).save(path)
    return folder


@pytest.fixture(scope="module")
def calls(tmp_path_factory, pictures):
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode:
        pytest.skip("strace is missing, or may not trace processes here")
    root, log = tmp_path_factory.mktemp("traced"), tmp_path_factory.mktemp("log") / "calls"
    return root, record([sys.executable, "-c", PROGRAM, str(pictures), str(root)], log, cwd=Path(__file__).parents[2])


def load(pictures: Path, cache_dir: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    split = load_cached(folder_source(str(pictures)), size=8, cache_dir=cache_dir).train
    return np.array(split.images), np.array(split.labels), [split.file(row) for row in range(len(split))]


def test_the_history_ends_with_the_files_that_are_there(calls, tmp_path):
    root, found = calls
    history = History(root)
    for call in found:
        history.apply(call)
    assert history.output.split() == [b"decoded"]
    for change in history.changes:
        change.waits_for.clear()
    history.crash(tmp_path, np.random.default_rng(0))
    names = {path.relative_to(root) for path in root.rglob("*")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == names
    assert any(name.name == "train_images.npy" for name in names)
    for name in names:
        if (root / name).is_file() and name.suffix != ".lock":
            assert (tmp_path / name).read_bytes() == (root / name).read_bytes(), name


def test_no_power_cut_leaves_other_pictures(calls, pictures, tmp_path):
    root, found = calls
    images, labels, files = load(pictures, root)
    for seed, cache_dir, printed in crash_often(root, found, tmp_path, schedules=SCHEDULES):
        before = {path: path.stat().st_mtime_ns for path in cache_dir.glob("*/*.npy")}
        again = load(pictures, cache_dir)
        np.testing.assert_array_equal(again[0], images, err_msg=seed)
        np.testing.assert_array_equal(again[1], labels, err_msg=seed)
        assert again[2] == files, seed
        # What the program has called decoded is not decoded again, and nothing unfinished is left behind.
        if b"decoded" in printed:
            assert {path: path.stat().st_mtime_ns for path in cache_dir.glob("*/*.npy")} == before, seed
        assert not list(cache_dir.glob("*.partial")), seed
