"""Which folders for results are refused: those in which the next run would find pictures of this one."""

import glob
import os
from pathlib import Path

import pytest

from jaxcnn.bulk.heatmaps import Heatmaps
from jaxcnn.bulk.outside import check_outside
from jaxcnn.bulk.picture_files import find_pictures
from jaxcnn.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory and the home, with pictures in `photos`, in `photos/day` and beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("photos/a.jpg", "photos/day/b.jpg", "red/c.png", "d.jpg", "else/e.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    os.symlink("../else", "photos/link")
    os.symlink("photos/day", "way")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["photos", "photos/**/*.jpg", "photos/*", "*.jpg", "*/*", "**", "~/photos", "red", "*/[c].png"]
)
@pytest.mark.parametrize(
    "folder", ["photos/sorted", "photos", "sorted", ".", "photos/day/..", "photos/link", "way", "~/photos"]
)
@pytest.mark.parametrize("option", ["sort_into", "heatmaps"])
def test_what_the_next_run_would_find_is_refused(name, folder, option):
    place = Path(folder).expanduser()
    options = {"sort_into": None, "heatmaps": None, "classes": ["blue", "red"]}
    before = {file.name for file in find_pictures([name], [])[0]}
    refusal = ""
    try:
        check_outside([name], **options | {option: place})
    except UserError as error:
        refusal = str(error)
    assert not refusal or f"{option} is '{place}', which would put pictures among {name}; give" in refusal
    # What the command would write.
    for file in before:
        target = place / "blue" / Path(file).name if option == "sort_into" else Heatmaps(place).path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        if option == "sort_into":
            (place / "red").mkdir(exist_ok=True)
            (place / "red" / f"2{target.name}").touch()
    found = {file.name for file in find_pictures([name], [])[0]} - before
    # A pattern for any depth is refused even if no heatmap has such a name.
    assert bool(refusal) == bool(found) or (option == "heatmaps" and "**" in name and refusal)


def test_files_and_standard_input_are_never_refused():
    check_outside([*glob.glob("*.jpg"), "-"], heatmaps=Path(), sort_into=Path(), classes=["red"])
