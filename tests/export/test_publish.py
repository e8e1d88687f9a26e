"""Files get their places all at once, and nothing of anybody else's is replaced."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import export
import export.sidecars
import export.workdir
from jaxcnn.errors import UserError
from jaxcnn.onnx_file import open_model


def test_an_example_that_cannot_be_written_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def cut_short(file, **arrays):
        write(file, **arrays)
        raise OSError("No space left on device")

    write = np.savez_compressed
    monkeypatch.setattr(np, "savez_compressed", cut_short)
    with pytest.raises(UserError, match="No space left"):
        export.export_workdir(run, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_with_the_last_file_leaves_all_as_it_was(pictured, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(pictured, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    synced = []

    def fill_up(descriptor):
        synced.append(descriptor)
        if len(synced) == 6:  # the model, and five files beside it
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fill_up)
    with pytest.raises(UserError, match=r"model.onnx cannot be written: No .* MB free\); make room and run the same"):
        export.export_workdir(run, features=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_model_is_replaced_after_the_files_beside_it(run, tmp_path, monkeypatch):
    path = export.export_workdir(run, tmp_path / "m.onnx")
    older, moved, move = path.read_bytes(), [], os.replace
    assert path.with_suffix(".json").exists()

    def refuse_the_model(source, target):
        if target == path:
            raise PermissionError(13, "Permission denied")
        move(source, target)
        if Path(target).is_relative_to(tmp_path / "m") or target == tmp_path / "m.json":
            moved.append(Path(target).name)

    monkeypatch.setattr("os.replace", refuse_the_model)
    with pytest.raises(UserError, match=r"m.onnx cannot be written: Permission denied"):
        export.export_workdir(run, path, features=True)
    # The older model is still there, and not refused for the description of the new one.
    assert path.read_bytes() == older
    assert open_model(path).outputs == ("logits", "probabilities")
    assert (moved[0], moved[-1], len(moved)) == ("config.json", "example.npz", 4)


def test_folders_of_killed_exports_are_removed_after_a_day(run, tmp_path):
    target = tmp_path / "m[1].onnx"
    names = (".export-m[1].onnx-killed", ".export-m[1].onnx-running", ".export-settings", ".export-m1.onnx-other")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.onnx").write_bytes(b"half")
        if not name.endswith("running"):
            os.utime(tmp_path / name, (time.time() - 25 * 3600,) * 2)
    begun = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.workdir, "verify", lambda path, *_, **__: begun.append(path.parent.name) or 0.0)
        export.export_workdir(run, target)
    assert begun[0].startswith(".export-m[1].onnx-")
    assert {path.name for path in tmp_path.glob(".*")} == set(names[1:])


@pytest.mark.parametrize(
    ("existing", "text"),
    [
        ("pets/README.md", "my notes"),
        ("pets/config.json", "[1]"),
        ("pets/cat/1.png", ""),
        ("pets/config.json", "{"),
        ("pets", ""),
        ("pets.json", '{"opse": 17}'),
    ],
)
def test_files_that_are_not_sidecars_are_never_replaced(run, tmp_path, existing, text):
    file = tmp_path / existing
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    there = sorted(tmp_path.rglob("*"))
    named = tmp_path / Path(existing).parts[0]
    with pytest.raises(
        UserError, match=f"{named} would be written with {tmp_path / 'pets.onnx'}, but is something else"
    ):
        export.export_workdir(run, tmp_path / "pets.onnx")
    assert sorted(tmp_path.rglob("*")) == there
    assert file.read_text() == text


@pytest.mark.parametrize("left", ["pets/.config.json.123.tmp", "pets/config.json", "pets.json"])
def test_files_of_an_interrupted_export_are_replaced(tmp_path, left):
    file = tmp_path / left
    file.parent.mkdir(exist_ok=True)
    file.touch()
    if left == "pets/config.json":
        (tmp_path / "pets" / "README.md").touch()
    assert export.sidecars.foreign_path(tmp_path / "pets.onnx") is None


@pytest.mark.run
def test_a_file_is_exported_again_after_an_interruption(run, tmp_path):
    (tmp_path / "pets").mkdir()
    path = export.export_workdir(run, tmp_path / "pets.onnx")
    (tmp_path / "pets" / "README.md").unlink()
    (tmp_path / "pets" / "NOTICE").write_text("mine")
    export.export_workdir(run, path)
    assert (tmp_path / "pets" / "README.md").exists()
