"""Power cuts at any moment while the cache is written: it never has other pictures, and is usable again."""

from pathlib import Path

import numpy as np
import pytest
from crashes import SCHEDULES, check_replay, crash_often, record
from PIL import Image

from jaxcnn.data.cache import load_cached
from jaxcnn.data.encoded_cache import load_encoded
from jaxcnn.data.shards import has_array_record
from jaxcnn.data.sources.folder import folder_source

pytestmark = pytest.mark.drill

LOADERS = {"decoded": load_cached, "encoded": load_encoded}
PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/data"]
from test_cache_crashes import LOADERS, folder_source
LOADERS[sys.argv[1]](folder_source(sys.argv[2]), size=8, cache_dir=Path(sys.argv[3]))
print("written", flush=True)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(8):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 90, 250 - 20 * number)).save(path)
    return folder


@pytest.fixture(scope="module", params=LOADERS)
def recorded(request, tmp_path_factory, pictures):
    """The name of the store, the folder that the program wrote to, and its calls."""
    if request.param == "encoded" and not has_array_record():
        pytest.skip("array-record is not for Windows")
    root, log = tmp_path_factory.mktemp("traced"), tmp_path_factory.mktemp("log") / "calls"
    return request.param, root, record(PROGRAM, request.param, pictures, root, log=log)


def load(store: str, pictures: Path, cache_dir: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    split = LOADERS[store](folder_source(str(pictures)), size=8, cache_dir=cache_dir).train
    return np.array(split.images[:]), np.array(split.labels), [split.file(row) for row in range(len(split))]


def test_the_calls_add_up_to_the_files(recorded, tmp_path):
    _, root, calls = recorded
    assert check_replay(root, calls, tmp_path, but={".lock"}) == [b"written"]
    assert list(root.glob("*/train_labels.npy"))


def test_no_power_cut_leaves_other_pictures(recorded, pictures, tmp_path):
    store, root, calls = recorded
    images, labels, files = load(store, pictures, root)
    for seed, cache_dir, printed in crash_often(root, calls, tmp_path, schedules=SCHEDULES):
        before = {path: path.stat().st_mtime_ns for path in cache_dir.glob("*/*.npy")}
        again = load(store, pictures, cache_dir)
        np.testing.assert_array_equal(again[0], images, err_msg=seed)
        np.testing.assert_array_equal(again[1], labels, err_msg=seed)
        assert again[2] == files, seed
        # What the program has called written is not written again, and nothing unfinished is left behind.
        if b"written" in printed:
            assert {path: path.stat().st_mtime_ns for path in cache_dir.glob("*/*.npy")} == before, seed
        assert not list(cache_dir.glob("*.partial")), seed
