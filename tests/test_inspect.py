"""The command that says what is in a folder: every planted fault is found, none is invented."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.data.findings import check_findings
from jaxcnn.errors import UserError
from jaxcnn.inspect import main
from jaxcnn.survey import Survey

ROOT = Path(__file__).parent.parent


def draw(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """`pets` with two classes of 12 training and 3 validation pictures, all different, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, (split, name) in enumerate((split, name) for split in ("train", "val") for name in ("cat", "dog")):
        folder = tmp_path / "pets" / split / name
        folder.mkdir(parents=True)
        for i in range(12 if split == "train" else 3):
            draw(100 * number + i).save(folder / f"{i}.jpg", quality=90)
    return tmp_path / "pets"


@pytest.fixture
def spoiled(clean):
    """The same with one fault of every kind."""
    shutil.copy(clean / "train/cat/3.jpg", clean / "val/cat/copy.jpg")
    draw(101).resize((90, 67)).save(clean / "val/dog/smaller.png")
    draw(5).save(clean / "train/dog/wrong.jpg", quality=50)
    shutil.copy(clean / "train/dog/7.jpg", clean / "train/dog/again.jpg")
    (clean / "train/dog/broken.jpg").write_bytes(b"nothing")
    (clean / "train/cat/notes.txt").write_text("read me")
    (clean / "test" / "cat").mkdir(parents=True)
    draw(9).save(clean / "test/cat/seen.png")
    Image.new("RGB", (9, 9), "gray").save(clean / "train/cat/tiny.png")
    return clean


LEAKS = [
    ["pets/test/cat/seen.png", "pets/train/cat/9.jpg"],
    ["pets/train/cat/3.jpg", "pets/val/cat/copy.jpg"],
    ["pets/train/dog/1.jpg", "pets/val/dog/smaller.png"],
]
CONTRADICTION = ["pets/train/cat/5.jpg", "pets/train/dog/wrong.jpg"]
REPEATED = ["pets/train/dog/7.jpg", "pets/train/dog/again.jpg"]


def findings(*arguments: str) -> dict:
    main([*arguments, "--output", "findings.json"])
    with open("findings.json") as file:
        return json.load(file)


def test_every_planted_fault_is_found(spoiled, capsys):
    found = findings("pets")
    assert found["classes"] == {"cat": 17, "dog": 18}
    assert found["splits"] == {"train": {"cat": 13, "dog": 14}, "validation": {"cat": 4, "dog": 4}}
    assert found["broken"] == ["pets/train/dog/broken.jpg"]
    assert found["passed_over"] == ["pets/train/cat/notes.txt"]
    assert sorted(map(sorted, found["leaks"])) == LEAKS
    assert list(map(sorted, found["contradictions"])) == [CONTRADICTION]
    assert sorted(map(sorted, found["duplicates"])) == sorted([*LEAKS, CONTRADICTION, REPEATED])
    distances = {
        tuple(sorted(group)): near for group, near in zip(found["duplicates"], found["distances"], strict=True)
    }
    assert distances[tuple(REPEATED)] is None
    assert distances[tuple(CONTRADICTION)] <= 8
    assert found["gray"] == found["tiny"] == ["pets/train/cat/tiny.png"]
    said = capsys.readouterr().out
    assert "pets: 36 pictures in 2 classes" in said
    assert "pixels: 9 to 160 wide, 9 to 120 high" in said
    assert "the same picture, or nearly, in several splits, which spoils every measurement (3 groups):" in said
    assert "pets/train/dog/7.jpg = pets/train/dog/again.jpg (the same pixels)" in said


def test_a_large_group_is_one_short_line_with_files_of_every_folder(clean, capsys):
    for i in range(20):
        shutil.copy(clean / "train/dog/7.jpg", clean / f"train/dog/more{i:02}.jpg")
    shutil.copy(clean / "train/dog/7.jpg", clean / "val/dog/copy.jpg")
    main(["pets"])
    line = (
        "  pets/train/dog/7.jpg = pets/val/dog/copy.jpg = pets/train/dog/more00.jpg = pets/train/dog/more01.jpg "
        "and 18 more (the same pixels)\n"
    )
    # As a leak, and as a duplicate.
    assert capsys.readouterr().out.count(line) == 2


def test_nothing_is_invented(clean, capsys):
    found = findings("pets")
    for name in ("broken", "duplicates", "leaks", "contradictions", "gray", "tiny", "passed_over"):
        assert found[name] == [], name
    assert found["few"] == {}
    assert found["formats"] == {"JPEG": 30}
    assert found["sizes"]["width"] == {"least": 160, "median": 160, "most": 160}
    assert "pixels: 160 wide, 120 high\n" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["pets", "test/pets"])
def test_folders_above_the_pictures_are_no_splits(clean, place):
    """Copies are in two splits only if both are below the folder that is looked at."""
    if place != "pets":
        shutil.copytree("pets", place)
    Path(place, "unused").mkdir()
    shutil.copy(f"{place}/train/cat/1.jpg", f"{place}/unused/again.jpg")
    found = findings(place)
    assert list(map(sorted, found["duplicates"])) == [[f"{place}/train/cat/1.jpg", f"{place}/unused/again.jpg"]]
    assert (found["leaks"], found["contradictions"]) == ([], [])


def test_raw_files_beside_their_pictures_are_passed_over(clean):
    draw(0).save("pets/train/cat/0.nef", "TIFF")
    found = findings("pets")
    assert (found["passed_over"], found["duplicates"]) == (["pets/train/cat/0.nef"], [])


def test_a_zip_a_folder_without_classes_and_the_page(spoiled, capsys):
    shutil.make_archive("pets", "zip", ".", "pets")
    main(["pets.zip", "--page", "out/page.html"])
    page = (spoiled.parent / "out/page.html").read_text()
    assert page.count("<figure>") == 2 * 3 + 2 + 2
    assert "http" not in page
    # Links lead to the files.
    main(["pets", "--page", "out/page.html"])
    page = (spoiled.parent / "out/page.html").read_text()
    assert 'href="../pets/train/dog/again.jpg"' in page
    capsys.readouterr()
    found = findings("pets/train/cat")
    assert capsys.readouterr().out.startswith("pets/train/cat: 13 pictures\n")
    assert found["classes"] == {}
    assert "has no class folders" in found["problem"]
    assert found["pictures"] == 13


def write_tars(pets, folder):
    """The pictures of class folders in the layout of WebDataset."""
    folder.mkdir()
    (folder / "classes.txt").write_text("cat\ndog\n")
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-0.tar", "w") as archive:
            for label, name in enumerate(("cat", "dog")):
                for file in sorted((pets / split / name).iterdir()):
                    archive.add(file, f"{name}/{file.name}")
                    (pets.parent / "label").write_text(str(label))
                    archive.add(pets.parent / "label", f"{name}/{file.stem}.cls")


def write_parquet(pets, folder):
    """The same in the layout of Hugging Face's datasets, in an order of their own: 2 rows in each row group."""
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir()
    for split, called in (("train", "train"), ("val", "validation")):
        files = [
            (file, label)
            for label, name in enumerate(("cat", "dog"))
            for file in sorted((pets / split / name).iterdir())
        ]
        table = arrow.table(
            {
                "image": [{"bytes": file.read_bytes(), "path": file.name} for file, _ in files],
                "label": [label for _, label in files],
            }
        )
        parquet.write_table(table, folder / f"{called}-00000-of-00001.parquet", row_group_size=2)


def test_tar_files_are_inspected(clean, capsys):
    shutil.copy(clean / "train/cat/3.jpg", clean / "val/cat/copy.jpg")
    draw(5).save(clean / "train/dog/wrong.jpg", quality=50)
    (clean / "train/dog/broken.jpg").write_bytes(b"nothing")
    write_tars(clean, clean.parent / "shards")
    found = findings("shards")
    assert found["splits"] == {"train": {"cat": 12, "dog": 13}, "validation": {"cat": 4, "dog": 3}}
    assert found["leaks"] == [["shards/train-0.tar/cat/3.jpg", "shards/val-0.tar/cat/copy.jpg"]]
    assert found["contradictions"] == [["shards/train-0.tar/cat/5.jpg", "shards/train-0.tar/dog/wrong.jpg"]]
    assert found["duplicates"] == [*found["leaks"], *found["contradictions"]]
    assert found["broken"] == ["shards/train-0.tar/dog/broken.jpg"]
    assert "shards: 32 pictures in 2 classes" in capsys.readouterr().out
    # One file alone, and the page.
    found = findings("shards/val-0.tar", "--page", "page.html")
    assert list(found["classes"].values()) == [4, 3]
    main(["shards", "--page", "page.html"])
    page = (clean.parent / "page.html").read_text()
    assert page.count("<figure>") == 2 + 2
    assert "href" not in page


def test_parquet_files_are_inspected(clean):
    shutil.copy(clean / "train/cat/3.jpg", clean / "val/cat/copy.jpg")
    write_parquet(clean, clean.parent / "rows")
    found = findings("rows", "--page", "page.html")
    assert found["splits"] == {"train": {"0": 12, "1": 12}, "validation": {"0": 4, "1": 3}}
    # The files in the order of their names: 0, 1, 10, 11, 2, 3 and so on.
    leak = ["rows/train-00000-of-00001.parquet/5", "rows/validation-00000-of-00001.parquet/3"]
    assert (found["leaks"], found["duplicates"], found["contradictions"]) == ([leak], [leak], [])
    assert (clean.parent / "page.html").read_text().count("<figure>") == 2


def test_a_damaged_tar_file_is_one_line(clean):
    (clean.parent / "shards.tar").write_bytes(b"any")
    with pytest.raises(UserError, match=r"shards.tar is not a complete, uncompressed tar file .*; make it again$"):
        main(["shards.tar"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one folder or zip of pictures"),
        (["pets", "pets"], "give one folder or zip of pictures"),
        (["absent"], "absent does not exist; give a folder or a zip of pictures, or tar or Parquet files"),
        (["pets/train/cat/3.jpg"], r"3\.jpg is a file; give a folder or a zip of pictures, or tar or Parquet files"),
        (["pets", "--output", "pets"], "output is 'pets', which is a folder"),
        (["pets", "--page", "pets/train/cat/3.jpg/x.html"], r"page '.*' cannot be written: .*3\.jpg is a file; give"),
    ],
)
def test_mistakes_are_one_line(clean, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        main(arguments)
    assert "\n" not in str(raised.value)


def config(**settings: object) -> DataConfig:
    return DataConfig(source="pets", cache_dir="cache", image_size=64, **settings)


def test_training_stops_at_leaks_unless_they_are_allowed(spoiled):
    (spoiled / "train/dog/broken.jpg").unlink()
    message = (
        r"^1 of 8 validation pictures of pets are training pictures too, such as val/cat/copy.jpg = train/cat/3.jpg; "
        r"`python -m jaxcnn.inspect pets` lists them: .* remove one of each, or allow them with --data.allow_leaks$"
    )
    with pytest.raises(UserError, match=message):
        check_findings(data.load(config()), config())
    leak, *oddities = check_findings(data.load(config()), config(allow_leaks=True))
    assert leak.startswith("1 of 8 validation pictures of pets are training pictures too")
    assert oddities == [
        "1 validation pictures are nearly the same as training pictures: their accuracy says less",
        "2 pictures look like pictures of another class; a label may be wrong",
        "2 of 27 training pictures repeat another one",
        "1 of 27 training pictures are gray, such as train/cat/tiny.png",
        "1 of 27 training pictures are tiny, such as train/cat/tiny.png",
    ]


def test_the_same_pixels_in_two_classes_mean_a_wrong_label(clean, capsys):
    first = sorted((clean / "train/cat").iterdir())[0]
    shutil.copy(first, clean / f"train/dog/copy{first.suffix}")
    assert "2 pictures are in several classes; one label is wrong" in check_findings(data.load(config()), config())
    main(["pets"])
    assert "the same picture in several classes, so that one label is wrong (1 group):" in capsys.readouterr().out


def test_training_says_nothing_about_clean_pictures(clean):
    assert check_findings(data.load(config()), config()) == []


def test_leaks_depend_on_what_is_held_out(clean):
    """Two copies in one class folder leak only if they are on different sides of the split."""
    shutil.copy(clean / "train/cat/3.jpg", clean / "train/cat/copy.jpg")
    refused = 0
    for seed in range(12):
        settings = config(validation_fraction=0.3, split_seed=seed)
        dataset = data.load(settings)
        sides = {dataset.train.file(row) for row in range(len(dataset.train))}
        leaks = len({"train/cat/3.jpg", "train/cat/copy.jpg"} & sides) == 1
        if leaks:
            refused += 1
            with pytest.raises(UserError, match="validation pictures of pets are training pictures too"):
                check_findings(dataset, settings)
        else:
            check_findings(dataset, settings)
    assert 0 < refused < 12


def test_the_pictures_of_all_classes_are_counted_at_once(clean, monkeypatch):
    """Counted for each class, a thousand classes of a hundred pictures would take minutes."""
    calls, count = [], Survey.counts
    monkeypatch.setattr(Survey, "counts", lambda *arguments: calls.append(arguments) or count(*arguments))
    found = findings("pets")
    assert found["splits"] == {"train": {"cat": 12, "dog": 12}, "validation": {"cat": 3, "dog": 3}}
    assert len(calls) == 2


def test_ctrl_c_ends_it_in_one_line(clean):
    """While pictures are read, and while they are compared."""
    for phase in ("look_at", "_compare_tile"):
        program = (
            "import os, signal, sys\nfrom jaxcnn import cli, inspect, survey\nfrom jaxcnn.data import duplicates\n"
            f"module = {'survey' if phase == 'look_at' else 'duplicates'}\nwork, calls = module.{phase}, []\n"
            "def interrupt(*arguments, **options):\n"
            "    calls.append(1)\n    if len(calls) == 1: os.kill(os.getpid(), signal.SIGINT)\n"
            "    return work(*arguments, **options)\n"
            f"module.{phase} = interrupt\nsys.argv = ['inspect', 'pets']\ncli.run(inspect.main, 'inspect')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "inspect: interrupted\n"), phase
