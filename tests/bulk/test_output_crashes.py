"""Power cuts at any moment of `predict`: what is left is whole, and resumed to the files of an undisturbed command."""

import os
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
from crashes import SCHEDULES, check_replay, crash_often, record
from PIL import Image

from jaxcnn.bulk.parquet_output import unfinished_path
from jaxcnn.predict import main
from tests.bulk.models import write_colours

pytestmark = pytest.mark.drill

FIRST, ALL = 5, 20
"""Pictures of the first command, and of the second, which has those too. A command classifies batches of 16."""
PROGRAM = """
import sys
sys.path[:0] = [".", "tests", "tests/bulk"]
from test_output_crashes import ALL, FIRST, predict
for count in (FIRST, ALL):
    predict(sys.argv[1], sys.argv[2], sys.argv[3], count=count)
    print(count, flush=True)
"""


def predict(pictures, folder, ending: str, *, count: int = ALL) -> str:
    """Classifies the first pictures into a folder, with heatmaps and copies, and returns what the command says."""
    os.chdir(pictures)
    names = [f"photos/{number}.png" for number in range(count)]
    options = ["--output", f"{folder}/r.{ending}", "--heatmaps", f"{folder}/heat", "--sort_into", f"{folder}/sorted"]
    with redirect_stderr(StringIO()) as said:
        main(["model.onnx", *names, *options, "--copy"])
    return said.getvalue()


def write_pictures(folder: Path) -> Path:
    """Writes a model and `photos` of plain colours; returns the folder."""
    write_colours(folder / "model.onnx")
    (folder / "photos").mkdir()
    for number in range(ALL):
        colour = [(200, 60, 50), (50, 190, 60), (60, 70, 210)][number % 3]
        Image.new("RGB", (9, 9), tuple(level + number for level in colour)).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a model and pictures, from which the tests run."""
    here = Path.cwd()
    yield write_pictures(tmp_path_factory.mktemp("pictures"))
    os.chdir(here)


@pytest.fixture(scope="module", params=["csv", "jsonl", "parquet"])
def recorded(request, tmp_path_factory, pictures):
    """The ending of the file, the folder that the program wrote to, and its calls."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    root, log = tmp_path_factory.mktemp("traced"), tmp_path_factory.mktemp("log") / "calls"
    return request.param, root, record(PROGRAM, pictures, root, request.param, log=log)


def read(folder: Path) -> dict[str, object]:
    """Returns the content of all files by path; of Parquet files the rows, as their groups depend on interruptions."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.suffix == ".parquet" and not path.name.startswith("."):
            import pyarrow.parquet

            found[path.name] = pyarrow.parquet.read_table(path).to_pylist()
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def count_rows(path: Path) -> int:
    """Returns how many rows a file has, with those that wait beside a Parquet file."""
    if path.suffix == ".parquet":
        return len(read(path.parent).get(path.name, [])) + count_rows(unfinished_path(path))
    lines = path.read_bytes().count(b"\n") if path.exists() else 0
    return lines - 1 if path.suffix == ".csv" and lines else lines


def test_the_calls_add_up_to_the_files(recorded, tmp_path):
    _, root, calls = recorded
    assert check_replay(root, calls, tmp_path) == [b"5", b"20"]
    assert len(list(root.rglob("*.png"))) == 2 * ALL


def test_every_power_cut_is_resumed_to_the_same_files(recorded, pictures, tmp_path):
    ending, root, calls = recorded
    undisturbed = read(root)
    (tmp_path / "left").mkdir()
    for seed, folder, printed in crash_often(root, calls, tmp_path / "left", schedules=SCHEDULES):
        # Files under their final names are whole; rows are all there that a finished command has written.
        for path in [*folder.glob("heat/**/[!.]*.png"), *folder.glob("sorted/**/[!.]*.png")]:
            assert path.read_bytes() == undisturbed[str(path.relative_to(folder))], seed
        assert count_rows(folder / f"r.{ending}") >= int((printed or [b"0"])[-1]), seed
        predict(pictures, folder, ending)
        assert read(folder) == undisturbed, seed
