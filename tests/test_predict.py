"""The command that classifies pictures: what it prints and writes, what it resumes, and errors of the user."""

import csv
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, write_zip, zip_folder
from PIL import Image

from jaxcnn.bulk.output import open_output
from jaxcnn.bulk.parquet_output import ParquetOutput
from jaxcnn.errors import UserError
from jaxcnn.predict import main
from tests.bulk.models import write_colours

ROOT = Path(__file__).parent.parent
COLOURS = {"red": (200, 60, 50), "green": (50, 190, 60), "blue": (60, 70, 210)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a model, `photos` of plain colours in nested folders, a broken one, and a text."""
    monkeypatch.chdir(tmp_path)
    write_colours(tmp_path / "model.onnx")
    for number, colour in enumerate(COLOURS.values()):
        place = tmp_path / "photos" / f"day {number}"
        place.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (30, 20), tuple(level + i for level in colour)).save(place / f"{i}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"not a picture")
    (tmp_path / "photos" / "notes.txt").write_text("of the days")
    return tmp_path


GOOD = {f"photos/day {number}/{i}.png": name for number, name in enumerate(COLOURS) for i in range(2)}


def predict(*arguments: str) -> int:
    """Runs the command and returns its exit status."""
    try:
        main(["model.onnx", *arguments])
    except SystemExit as end:
        return end.code
    return 0


def read_csv(path: str) -> list[dict[str, str]]:
    with open(path, newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_a_table_for_people(folder, capsys):
    assert predict("photos/day 0", "photos/day 2/1.png", "--top_k", "2") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["predicted", "class", "class", "2", "file"]
    assert [line.split(maxsplit=4)[::4] for line in lines] == [
        ["red", "photos/day 0/0.png"],
        ["red", "photos/day 0/1.png"],
        ["blue", "photos/day 2/1.png"],
    ]
    assert lines[0].split()[2] == "green"


def test_columns_and_probabilities(folder):
    assert predict("photos/day 1", "--output", "r.csv", "--top_k", "9") == 0
    rows = read_csv("r.csv")
    assert list(rows[0]) == [
        "file",
        "predicted_class",
        "probability",
        "class_2",
        "probability_2",
        "class_3",
        "probability_3",
        "model",
    ]
    assert rows[0]["model"] == hashlib.sha256(Path("model.onnx").read_bytes()).hexdigest()[:12]
    expected = np.exp(np.array([5.0, 19.0, 6.0]) - 19)
    shares = [float(rows[0][name]) for name in ("probability", "probability_2", "probability_3")]
    assert shares == pytest.approx(sorted(expected / expected.sum(), reverse=True), abs=1e-6)
    assert [rows[0][name] for name in ("predicted_class", "class_2", "class_3")] == ["green", "blue", "red"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_goes_on_after_a_broken_file_and_resumes(folder, capsys, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    assert predict("photos/day 0", "--output", f"r.{ending}") == 0
    # The others are added; the broken file is listed, a file that is no picture is counted.
    assert predict("photos", "--output", f"r.{ending}") == 1
    said = capsys.readouterr().err
    assert "4 pictures classified into" in said
    assert (
        "2 were in it already; 1 file passed over as no picture; 1 file could not be read:\n  photos/broken.jpg" in said
    )
    rows = read_rows(f"r.{ending}")
    assert {row["file"]: row["predicted_class"] for row in rows} == GOOD
    assert len(rows) == 6
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "photos", f"r.{ending}"}


def test_thumbnails_of_raw_files_are_no_pictures(folder, capsys):
    """They begin like TIFF. Training passes over them as well."""
    Image.new("RGB", (30, 20), COLOURS["red"]).save(folder / "photos" / "day 0" / "0.NEF", "TIFF")
    zip_folder(folder / "photos" / "day 0", folder / "day.zip")
    assert predict("photos/day 0", "day.zip", "--output", "r.csv") == 0
    assert "4 pictures classified into r.csv; 2 files passed over as no picture\n" in capsys.readouterr().err
    assert predict("photos/day 0/0.NEF", "--output", "raw.csv") == 1
    assert "  photos/day 0/0.NEF is a raw file of a camera; make a JPEG of it\n" in capsys.readouterr().err
    assert read_csv("raw.csv") == []


def read_rows(path: str) -> list[dict[str, object]]:
    if path.endswith("csv"):
        return read_csv(path)
    if path.endswith("jsonl"):
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def test_a_row_that_was_cut_off_is_written_again(folder):
    for name in ("r.csv", "r.jsonl"):
        predict("photos", "--output", name)
        whole = Path(name).read_bytes()
        for cut in (1, 20, 60):
            Path(name).write_bytes(whole[:-cut])
            predict("photos", "--output", name)
            assert Path(name).read_bytes() == whole


def test_rows_that_a_power_cut_has_replaced_by_zeros_are_written_again(folder):
    for name in ("r.csv", "r.jsonl"):
        predict("photos", "--output", name)
        whole = Path(name).read_bytes()
        place = whole.index(b"photos/day 1")
        Path(name).write_bytes(whole[:place] + bytes(80) + whole[place + 80 :])
        predict("photos", "--output", name)
        assert Path(name).read_bytes() == whole


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_disk_that_fails_says_where_and_what_to_do(folder, monkeypatch, capsys, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    for number, advice in ((errno.ENOSPC, r"\([\d,.]+ MB free\); make room"), (errno.EIO, "; check the disk")):

        def fail(path, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as context:
            context.setattr("jaxcnn.bulk.output_file.sync", fail)
            with pytest.raises(
                UserError, match=rf"^r.{ending}\S* cannot be written: .*{advice} and run the same command"
            ):
                predict("photos/day 0", "--output", f"r.{ending}")
    predict("photos/day 0", "--output", f"r.{ending}")
    assert "2 were in it already" in capsys.readouterr().err
    assert [row["predicted_class"] for row in read_rows(f"r.{ending}")] == ["red", "red"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows is not asked for locks")
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_two_processes_do_not_write_one_file(folder, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path, options = folder / f"r{ending}", {"top_k": 1, "channels": None, "model": "1f"}
    row = {"file": "a.png", "predicted_class": "red", "probability": 1.0}
    with open_output(path, **options) as output:
        output.write([row])
        with pytest.raises(UserError, match=rf"^another process writes .*r{ending}"), open_output(path, **options):
            pass
        output.write([row | {"file": "b.png"}])
    with open_output(path, **options) as output:
        assert dict(output.done) == {"a.png": "red", "b.png": "red"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows is not asked for locks")
def test_a_parquet_file_is_locked_until_it_is_complete(folder, monkeypatch):
    """Else another process would add rows to a file that is about to be removed."""
    pytest.importorskip("pyarrow")
    path, options, write_all = (
        folder / "r.parquet",
        {"top_k": 1, "channels": None, "model": "1f"},
        ParquetOutput._write_all,
    )
    tries = []

    def write_and_try(output, target):
        with pytest.raises(UserError, match=r"^another process writes .*r\.parquet"), open_output(path, **options):
            pass
        tries.append(target)
        write_all(output, target)

    monkeypatch.setattr(ParquetOutput, "_write_all", write_and_try)
    with open_output(path, **options) as output:
        output.write([{"file": "a.png", "predicted_class": "red", "probability": 1.0}])
    assert len(tries) == 1
    monkeypatch.undo()
    with open_output(path, **options) as output:
        assert dict(output.done) == {"a.png": "red"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows is not asked for locks")
def test_a_parquet_file_is_locked_before_it_is_read(folder, monkeypatch):
    """Else another process would complete it in between, and its pictures would be classified again."""
    pytest.importorskip("pyarrow")
    path, options = folder / "r.parquet", {"top_k": 1, "channels": None, "model": "1f"}
    with open_output(path, **options) as output:
        output.write([{"file": "a.png", "predicted_class": "red", "probability": 1.0}])
    read_groups, tries = ParquetOutput._read_groups, []

    def try_and_read(output):
        if not tries:
            tries.append(path)
            with pytest.raises(UserError, match=r"^another process writes .*r\.parquet"), open_output(path, **options):
                pass
        return read_groups(output)

    monkeypatch.setattr(ParquetOutput, "_read_groups", try_and_read)
    with open_output(path, **options) as output:
        assert dict(output.done) == {"a.png": "red"}
    assert tries


@pytest.mark.skipif(sys.platform == "win32", reason="Windows is not asked for locks")
def test_a_file_that_another_process_removes_is_not_written(folder, monkeypatch):
    """The rows beside a Parquet file are removed when it is complete, also if somebody has just opened them."""
    open_file = Path.open

    def open_and_remove(path, *arguments):
        file = open_file(path, *arguments)
        path.unlink()
        return file

    monkeypatch.setattr(Path, "open", open_and_remove)
    with (
        pytest.raises(UserError, match=r"^another process writes"),
        open_output(folder / "r.jsonl", top_k=1, channels=None, model="1f"),
    ):
        pass


def test_a_refused_parquet_file_leaves_nothing_beside_it(folder):
    pytest.importorskip("pyarrow")
    path = folder / "r.parquet"
    path.write_text("notes")
    with (
        pytest.raises(UserError, match="is not a Parquet file"),
        open_output(path, top_k=1, channels=None, model="1f"),
    ):
        pass
    assert [found.name for found in folder.glob("r.*")] == ["r.parquet"]


def test_a_parquet_file_that_cannot_be_read_is_not_called_something_else(folder, monkeypatch):
    """The advice to remove it would lose what was done."""
    pyarrow = pytest.importorskip("pyarrow.parquet")
    predict("photos/day 0", "--output", "r.parquet")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pyarrow, "ParquetFile", fail)
    with pytest.raises(UserError, match=r"^r.parquet cannot be written: Input/output error; give another --output$"):
        predict("photos/day 0", "--output", "r.parquet")


@pytest.mark.parametrize("start", ['a "b",\n ', "\r", "a\r\nb "])
def test_names_with_quotes_and_line_breaks_are_resumed(folder, capsys, start):
    strange = folder / "photos" / f"{start}c\udcff.png"
    Image.new("RGB", (8, 8), COLOURS["red"]).save(os.fsencode(strange))
    for name in ("r.csv", "r.jsonl"):
        predict("photos", "--output", name)
        content = Path(name).read_bytes()
        predict("photos", "--output", name)
        assert "0 pictures classified into" in capsys.readouterr().err
        Path(name).write_bytes(content[: content.index(b"c\xff" if b"c\xff" in content else b"c\\udcff")])
        predict("photos", "--output", name)
        assert sorted(Path(name).read_bytes().split(b"\n")) == sorted(content.split(b"\n"))
        assert f"photos/{strange.name}" in [row["file"] for row in read_rows(name)]


def test_pictures_in_the_folders_of_classes_are_not_sorted_again(folder, monkeypatch):
    """Standard input may name the links of an earlier command."""
    predict("photos/day 0", "--sort_into", "sorted")
    for name in ("sorted/red/0.png", "./sorted/../sorted/red/0.png"):
        monkeypatch.setattr("sys.stdin", iter([f"{name}\n"]))
        with pytest.raises(UserError, match=rf"^{name} lies where pictures are sorted into; leave it out$"):
            predict("-", "--sort_into", "sorted", "--output", "r.csv")
    assert len(list(Path("sorted").rglob("*.png"))) == 2
    assert read_csv("r.csv") == []


def test_features_and_heatmaps(folder):
    assert predict("photos/day 0", "--output", "r.jsonl", "--features", "--heatmaps", "heat") == 0
    row = read_rows("r.jsonl")[0]
    assert row["features"] == [200.0, 60.0, 50.0]
    with Image.open("heat/photos/day 0/0.png.png") as heatmap:
        assert heatmap.size == (256, 256)
        # Red is nearly everywhere, so that the colour is laid over all of it.
        level = 200 / 255 * 0.6
        assert heatmap.getpixel((9, 9)) == pytest.approx(
            [(1 - level) * shade + level * over for shade, over in zip(COLOURS["red"], (255, 64, 0), strict=True)],
            abs=2,
        )
    # A missing heatmap is written again, the row is not.
    os.remove("heat/photos/day 0/0.png.png")
    before = Path("r.jsonl").read_bytes()
    assert predict("photos/day 0", "--output", "r.jsonl", "--features", "--heatmaps", "heat") == 0
    assert os.path.exists("heat/photos/day 0/0.png.png")
    assert Path("r.jsonl").read_bytes() == before
    predict("photos/day 0", "--output", "r.csv", "--features")
    assert read_csv("r.csv")[0]["feature_1"] == "200.0"


@pytest.mark.parametrize("copy", [False, True])
def test_sorts_into_class_folders(folder, copy):
    members = {f"{i}.png": encode(Image.new("RGB", (9, 9), COLOURS["blue"])) for i in range(2)}
    write_zip(folder / "more.zip", members)
    options = ["photos", "more.zip", "--sort_into", "sorted", "--output", "r.csv", *(["--copy"] if copy else [])]
    for _ in range(2):
        predict(*options)
        found = sorted(path.relative_to("sorted").as_posix() for path in Path("sorted").rglob("*.png"))
        # The second picture of a name has a part of the SHA-256 of its path.
        assert [re.sub("-[0-9a-f]{16}", "-SHA", name) for name in found] == [
            "blue/0-SHA.png",
            "blue/0.png",
            "blue/1-SHA.png",
            "blue/1.png",
            *(f"{name}/{i}.png" for name in ("green", "red") for i in range(2)),
        ]
    first = Path("sorted/red/0.png")
    assert first.is_symlink() != copy
    assert first.read_bytes() == Path("photos/day 0/0.png").read_bytes()
    # Sorted also if the predictions were made before.
    predict("photos", "--sort_into", "later", "--output", "r.csv")
    assert len(list(Path("later").rglob("*.png"))) == 6


def test_copies_and_links_take_turns(folder):
    """Copies replace the links of an earlier command, as they are taken elsewhere; links do not replace copies."""
    for options, is_link in (([], True), (["--copy"], False), ([], False)):
        predict("photos/day 0", "--sort_into", "sorted", *options)
        assert {path.name: path.is_symlink() for path in Path("sorted/red").iterdir()} == {
            f"{i}.png": is_link for i in range(2)
        }


def test_a_copy_that_was_cut_off_is_made_again(folder, monkeypatch):
    """A process that is killed while it copies leaves no file that looks like another picture."""

    def copy_half(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("jaxcnn.bulk.class_folders.shutil.copyfile", copy_half)
        with pytest.raises(KeyboardInterrupt):
            predict("photos/day 0", "--sort_into", "sorted", "--copy", "--output", "r.csv")
    predict("photos/day 0", "--sort_into", "sorted", "--copy", "--output", "r.csv")
    found = {path.name: path.read_bytes() for path in Path("sorted/red").iterdir()}
    assert found == {f"{i}.png": Path(f"photos/day 0/{i}.png").read_bytes() for i in range(2)}


def test_a_parquet_file_has_no_row_twice(folder, monkeypatch):
    """A process may be killed when the file is complete, but the rows beside it are not removed yet."""
    pytest.importorskip("pyarrow")
    predict("photos/day 0", "--output", "r.parquet")
    with monkeypatch.context() as context:
        context.setattr("jaxcnn.bulk.parquet_output.Path.unlink", lambda *_, **__: None)
        predict("photos/day 1", "--output", "r.parquet")
    assert Path("r.parquet.unfinished.jsonl").exists()
    predict("photos", "--output", "r.parquet")
    assert sorted(row["file"] for row in read_rows("r.parquet")) == sorted(GOOD)
    assert not Path("r.parquet.unfinished.jsonl").exists()


def test_patterns_zips_and_standard_input(folder, monkeypatch, capsys):
    zip_folder(folder / "photos", folder / "photos.zip")
    assert predict("photos/**/1.png", "--output", "pattern.csv") == 0
    assert [row["file"] for row in read_csv("pattern.csv")] == [name for name in GOOD if name.endswith("1.png")]
    # A zip in a folder is passed over, unless a pattern names it.
    write_zip(folder / "photos" / "more.zip", {"9.png": encode(Image.new("RGB", (9, 9), COLOURS["blue"]))})
    assert predict("photos/**/*.zip", "--output", "inner.csv") == 0
    assert [row["file"] for row in read_csv("inner.csv")] == ["photos/more.zip/9.png"]
    assert predict("photos.zip", "--output", "zip.csv") == 1
    assert [row["file"] for row in read_csv("zip.csv")] == [
        f"photos.zip/{name.removeprefix('photos/')}" for name in GOOD
    ]
    monkeypatch.setattr("sys.stdin", iter(["photos/day 0/0.png\n", "\n", "photos/absent.png\n"]))
    assert predict("-", "--output", "lines.csv") == 1
    assert [row["file"] for row in read_csv("lines.csv")] == ["photos/day 0/0.png"]
    assert "photos/absent.png cannot be read" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert predict("-") == 0


def test_a_picture_of_two_arguments_is_classified_once(folder):
    predict("photos/day 0", "photos/day 0/0.png", "./photos/day 0", "--output", "r.csv")
    assert len(read_csv("r.csv")) == 2


def test_a_workdir(folder):
    main([str(folder), "photos/day 0", "--output", "r.csv"])
    assert len(read_csv("r.csv")) == 2
    (folder / "run").mkdir()
    with pytest.raises(UserError, match=r"^run is neither a workdir nor an .onnx file; it has no model.onnx$"):
        main(["run", "photos"])
    (folder / "run" / "config.json").touch()
    with pytest.raises(UserError, match=r"^run has no model.onnx yet; write it with: python -m export run$"):
        main(["run", "photos"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give pictures to classify, such as: python -m jaxcnn.predict runs/pictures photos --output results.csv"),
        (["absent"], "absent does not exist; give a picture, a folder, a zip or a pattern"),
        (["absent/*.jpg"], "absent/\\*.jpg does not exist"),
        (["empty"], "there are no files in empty; give pictures, or folders or zips of pictures"),
        (["photos", "--top_k", "0"], "top_k is 0; it must be at least 1"),
        (["photos", "--output", "r.txt"], "output is 'r.txt'; it must end with .csv, .jsonl or .parquet"),
        (["photos", "--features"], "features are too many for a table; give a file with --output"),
        (["photos", "--copy"], "copy says how to sort pictures; say where to with --sort_into"),
        (["photos", "--sort_into", "photos/sorted"], "'photos/sorted', which would put pictures among photos; give a"),
        (["photos", "--heatmaps", "photos"], "heatmaps is 'photos', which would put pictures among photos"),
        (["photos", "--output", "model.onnx/r.csv"], "model.onnx/r.csv cannot be written"),
        (["photos", "--tpo_k", "3"], "there is no option --tpo_k; there are: --output, --top_k"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=message) as raised:
        predict(*arguments)
    assert "\n" not in str(raised.value)


def row_with(**values: object) -> str:
    row = {"file": "a.png", "predicted_class": "red", "probability": 1.0, "class_2": "blue", "probability_2": 0.0}
    return json.dumps(row | {"class_3": "green", "probability_3": 0.0, "model": "?"} | values) + "\n"


def test_output_of_something_else_is_not_touched(folder):
    for name, content, message in (
        ("r.csv", "name,age\nAnn,3\n", "r.csv has the columns name, age, not file, predicted_class"),
        ("r.jsonl", "[1]\n", "line 1 of r.jsonl is not a prediction"),
        ("r.jsonl", '{"name": 1}\n', "r.jsonl has the columns name, not file"),
        ("r.jsonl", row_with(file=["a.png"]), "line 1 of r.jsonl is not a prediction; remove it or give another"),
        ("r.jsonl", row_with(predicted_class=None), "line 1 of r.jsonl is not a prediction"),
        ("r.jsonl", row_with(), r"r.jsonl has predictions of the model with the SHA-256 \?..., not [0-9a-f]{12}...;"),
    ):
        Path(name).write_text(content)
        with pytest.raises(UserError, match=message):
            predict("photos", "--output", name)
        assert Path(name).read_text() == content


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "parquet.unfinished.jsonl"])
def test_predictions_of_two_models_are_not_mixed(folder, capsys, ending):
    """Their files may have any time: one may be copied, and another be older than the predictions."""
    if "parquet" in ending:
        pytest.importorskip("pyarrow")
    output = f"r.{ending.removesuffix('.unfinished.jsonl')}"
    predict("photos/day 0", "--output", f"r.{'jsonl' if ending.endswith('jsonl') else ending}")
    if ending.endswith("unfinished.jsonl"):
        os.rename("r.jsonl", f"r.{ending}")
    before = Path(f"r.{ending}").read_bytes()
    write_colours(folder / "other.onnx", names=("cat", "dog", "cow"))
    os.utime("other.onnx", (1, 1))
    for options in ([], ["--sort_into", "sorted"]):
        message = (
            rf"^r.{ending} has predictions of the model with the SHA-256 [0-9a-f]{{12}}..., not [0-9a-f]{{12}}...;"
        )
        with pytest.raises(UserError, match=message):
            main(["other.onnx", "photos", *options, "--output", output])
        assert Path(f"r.{ending}").read_bytes() == before
    # The same model is resumed, whatever its time and name.
    os.rename("model.onnx", "renamed.onnx")
    os.utime("renamed.onnx")
    main(["renamed.onnx", "photos/day 0", "--output", output])
    assert "2 were in it already" in capsys.readouterr().err


def test_a_class_that_was_changed_by_hand_is_one_line(folder):
    predict("photos/day 0", "--output", "r.csv")
    Path("r.csv").write_text(Path("r.csv").read_text().replace(",red,", ",pink,"))
    with pytest.raises(UserError, match=r"^r.csv has the class 'pink', which the model lacks; correct or remove"):
        predict("photos/day 0", "--output", "r.csv", "--sort_into", "sorted")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", b"name;age"),
        ("r.csv", b"file,predicted_class,probability,age"),
        ("r.csv", "file,predicted_class\n".encode("utf-16")),
        ("r.csv", b"name,age\rAnn,3\rBob,4\r"),
        ("r.csv", b'"name,age\nAnn,3\n'),
        ("r.csv", b'"na"me,age\nAnn,3\n'),
        ("r.csv", bytes(3) + b"e,age\nAnn,3\n"),
        ("r.jsonl", b'{"name": 1}'),
        ("r.jsonl", b'{"file": "a.png", "age": 3}'),
        ("r.jsonl", b"name;age"),
        ("r.jsonl", "{}\n".encode("utf-16")),
        ("r.parquet.unfinished.jsonl", b"name;age"),
    ],
)
def test_a_file_without_one_whole_row_is_kept_unless_it_was_begun(folder, name, content):
    """What a killed process has left is less than a header; anything else may be work of the user."""
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    Path(name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"^(line 1 of )?{name} (is not|has the columns|does not begin).*another --output$"
    ):
        predict("photos", "--output", name.removesuffix(".unfinished.jsonl"))
    assert Path(name).read_bytes() == content


def test_a_file_that_was_only_begun_is_written(folder):
    """A killed process leaves the start of a header, a power cut sectors without content."""
    for name in ("r.csv", "r.jsonl"):
        predict("photos", "--output", name)
        whole = Path(name).read_bytes()
        # The last two are longer than the header.
        for left in (b"", whole[:1], whole[:12], bytes(12), bytes(9) + whole[9:], bytes(4096), bytes(80) + whole[80:]):
            Path(name).write_bytes(left)
            predict("photos", "--output", name)
            assert Path(name).read_bytes() == whole


def test_outputs_that_a_model_lacks_are_named(folder):
    write_colours(folder / "model.onnx", explained=False)
    for options, name in ((["--output", "r.csv", "--features"], "features"), (["--heatmaps", "heat"], "heatmap")):
        with pytest.raises(UserError, match=f"no output '{name}'; export it again with: .* --{name}"):
            predict("photos", *options)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jaxcnn.predict", "model.onnx", *arguments]


def test_ctrl_c_keeps_what_was_done_and_the_rest_follows(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command("-", "--output", "r.csv"), env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # More batches than are read ahead: some are written while the input stays open.
    names = [f"photos/day 0/../day {i % 3}/{'./' * i}0.png" for i in range(2000)]
    process.stdin.write("".join(f"{name}\n" for name in names))
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not os.path.exists("r.csv") or len(Path("r.csv").read_text().splitlines()) < 100:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "run the same command again for the others" in said
    assert said.splitlines()[-1] == "python -m jaxcnn.predict: interrupted"
    kept = read_csv("r.csv")
    assert [row["file"] for row in kept] == names[: len(kept)]


@pytest.mark.run
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_killed_process_is_resumed_to_the_same_file(folder, capsys, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    for number in range(2000):
        Image.new("RGB", (9, 9), (number % 256, 7 * number % 256, 99)).save(folder / "photos" / f"{number:04}.png")
    # Killed without warning while it writes.
    kept = Path(f"r.{ending}.unfinished.jsonl" if ending == "parquet" else f"r.{ending}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command("photos", "--output", f"r.{ending}"), env=environment) as process:
        while not kept.exists() or kept.stat().st_size < 10_000:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert predict("photos", "--output", f"r.{ending}") == 1
    assert "were in it already" in capsys.readouterr().err
    assert predict("photos", "--output", f"whole.{ending}") == 1
    assert read_rows(f"r.{ending}") == read_rows(f"whole.{ending}")


def test_no_jax_is_needed(folder):
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(['jax', 'flax', 'optax', 'orbax', 'scipy', 'sklearn', 'onnx']))"
    )
    program = f"{blocked}; from jaxcnn.predict import main; main(['model.onnx', 'photos/day 0'])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
