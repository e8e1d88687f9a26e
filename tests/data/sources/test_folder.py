import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode, make_picture, write_class_folders, write_zip, zip_folder

from jaxcnn.data.pictures import MAX_BYTES
from jaxcnn.data.source import make_key
from jaxcnn.data.sources.class_folders import open_class_folders
from jaxcnn.data.sources.folder import folder_source
from jaxcnn.data.sources.tree import Tree
from jaxcnn.errors import UserError

PNG = encode(make_picture(0, seed=0, size=8))


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


@pytest.fixture(params=["folder", "zip"])
def opened(request, tmp_path):
    """Opens members as a folder and as a zip."""

    def open_members(*names):
        root = write(tmp_path / "pets", *names)
        path = root if request.param == "folder" else zip_folder(root, tmp_path / "pets.zip")
        return folder_source(str(path)).open()

    return open_members


def contents(pictures) -> list[tuple[str, int]]:
    return [(pictures[i].where.split(" in ")[0], pictures[i].label) for i in range(len(pictures))]


def test_class_folders(opened):
    pets = opened("dog/2.png", "dog/1.png", "cat/1.png")
    assert pets.name == "pets"
    assert pets.names == ("cat", "dog")
    assert pets.wnids == ()
    assert pets.license == "unknown"
    assert contents(pets.train) == [("cat/1.png", 0), ("dog/1.png", 1), ("dog/2.png", 1)]
    assert pets.train[1].encoded == PNG
    assert len(pets.validation) == 0


def test_classes_are_in_the_order_of_their_names(opened):
    assert opened("b/1.png", "B/1.png", "a/1.png", "10/1.png", "9/1.png", "é/1.png").names == (
        "10", "9", "B", "a", "b", "é",
    )  # fmt: skip


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "test"])
def test_a_validation_folder_is_used(opened, validation):
    pets = opened("train/cat/1.png", "train/dog/1.png", f"{validation}/cat/2.png", f"{validation}/dog/3.png")
    assert pets.names == ("cat", "dog")
    assert contents(pets.train) == [("train/cat/1.png", 0), ("train/dog/1.png", 1)]
    assert contents(pets.validation) == [(f"{validation}/cat/2.png", 0), (f"{validation}/dog/3.png", 1)]


@pytest.mark.parametrize(("train", "validation"), [("Train", "VAL"), ("training", "testing"), ("TRAINING", "Test")])
def test_split_folders_are_found_in_any_case(opened, train, validation):
    pets = opened(f"{train}/cat/1.png", f"{train}/dog/1.png", f"{validation}/cat/2.png")
    assert pets.names == ("cat", "dog")
    assert contents(pets.validation) == [(f"{validation}/cat/2.png", 0)]


def test_test_pictures_without_classes_are_ignored(opened):
    pets = opened("train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png")
    assert len(pets.train) == 2
    assert len(pets.validation) == 0


def test_a_picture_beside_the_training_classes_is_named_even_if_test_pictures_have_no_classes(opened):
    with pytest.raises(UserError, match=r"pets(\.zip)?: train/sample\.png lies beside the class folders"):
        opened("train/cat/1.png", "train/dog/1.png", "train/sample.png", "test/1.png", "test/2.png")


@pytest.mark.parametrize(("train", "validation"), [
    ("training_set", "test_set"), ("Train Data", "Validation Data"), ("seg_train/seg_train", "seg_test/seg_test"),
    ("train/train", "valid/valid"), ("train", "val/val"), ("train2017", "val2017"),
])  # fmt: skip
@pytest.mark.parametrize("outer", ["", "a/"])
def test_split_folders_may_have_longer_names_or_be_nested(opened, train, validation, outer):
    train, validation = outer + train, outer + validation
    pets = opened(f"{train}/cat/1.png", f"{train}/dog/1.png", f"{validation}/dog/2.png", f"{outer}README.txt")
    assert pets.names == ("cat", "dog")
    assert contents(pets.train) == [(f"{train}/cat/1.png", 0), (f"{train}/dog/1.png", 1)]
    assert contents(pets.validation) == [(f"{validation}/dog/2.png", 1)]


def test_a_picture_beside_a_nested_split_is_named(opened):
    with pytest.raises(UserError, match=r"pets(\.zip)?: train/1\.png lies beside the class folders"):
        opened("train/train/cat/1.png", "train/train/dog/1.png", "train/1.png", "val/val/cat/2.png")


def test_the_only_class_may_have_the_name_of_its_split(opened):
    assert opened("train/train/1.png", "val/train/2.png").names == ("train",)


def test_validation_comes_before_test_in_longer_names_too(opened):
    pets = opened(*(f"{split}_set/{name}/1.png" for split in ("test", "train", "val") for name in ("cat", "dog")))
    assert contents(pets.validation) == [("val_set/cat/1.png", 0), ("val_set/dog/1.png", 1)]


@pytest.mark.parametrize("stray", ["training_set/1.png", "test_set/1.png"])
def test_a_picture_beside_the_classes_of_a_longer_named_split_is_named(opened, stray):
    members = [f"{split}_set/{name}/1.png" for split in ("test", "training") for name in ("cat", "dog")]
    with pytest.raises(UserError, match=rf"pets(\.zip)?: {stray} lies beside the class folders"):
        opened(*members, stray)


@pytest.mark.parametrize("other", ["seg_pred/1.png", "1.png"])
def test_anything_beside_longer_named_splits_is_named(opened, other):
    members = [f"seg_{split}/{name}/1.png" for split in ("test", "train") for name in ("forest", "sea")]
    name = other.split("/")[0]
    remedy = f"but {name} lies beside them; move {name} elsewhere, or rename the two if they are classes$"
    with pytest.raises(UserError, match=rf"seg_train and seg_test look like .*, {remedy}"):
        opened(*members, other)


@pytest.mark.parametrize("members", [
    ["training shoes/1.png", "test tube/1.png"],
    ["training shoes/{}/1.png", "test tube/{}/1.png"],
    ["toy train/1.png", "toy test/1.png"],
    ["toy train/images/1.png", "toy test/images/1.png"],
    ["toy train/{}/1.png", "toy test/1.png"],
    ["train test/{}/1.png", "test train/{}/1.png"],
])  # fmt: skip
def test_class_names_may_contain_the_name_of_a_split(opened, members):
    pets = opened(*(member.format(colour) for member in members for colour in ("red", "blue")))
    assert pets.names == tuple(sorted(member.split("/")[0] for member in members))


def test_the_first_of_several_split_folders_is_used(opened):
    pets = opened("train/cat/1.png", "training/cat/2.png", "test/cat/3.png", "val/cat/4.png")
    assert contents(pets.train) == [("train/cat/1.png", 0)]
    assert contents(pets.validation) == [("val/cat/4.png", 0)]


def test_validation_may_lack_a_class(opened):
    pets = opened("train/cat/1.png", "train/dog/1.png", "val/dog/3.png")
    assert contents(pets.validation) == [("val/dog/3.png", 1)]


def test_a_training_folder_alone(opened):
    pets = opened("train/cat/1.png", "train/dog/1.png")
    assert pets.names == ("cat", "dog")
    assert len(pets.validation) == 0


@pytest.mark.parametrize("outer", ["", "a/"])
def test_classes_beside_a_class_called_train_are_not_dropped(opened, outer):
    members = ("train/steam/1.png", "train/diesel/1.png", "plane/1.png", "bus/city/1.png")
    remedy = f"lies beside it; move {outer}bus elsewhere, or rename {outer}train if it is a class$"
    with pytest.raises(UserError, match=rf"{outer}train looks like .* all classes, but {outer}bus {remedy}"):
        opened(*(outer + member for member in members))


def test_notes_beside_the_training_folder_are_ignored(opened):
    assert opened("train/cat/1.png", "train/dog/1.png", "notes/sizes.csv", "notes/a.pdf", "sample.png").names == (
        "cat",
        "dog",
    )


@pytest.mark.parametrize("stray", ["train/1.png", "val/1.png"])
@pytest.mark.parametrize("outer", ["", "a/"])
def test_a_picture_beside_the_class_folders_of_a_split_is_named(opened, stray, outer):
    members = ("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png", stray)
    with pytest.raises(UserError, match=rf"pets(\.zip)?: {outer}{stray} lies beside the class folders"):
        opened(*(f"{outer}{name}" for name in members))


@pytest.mark.parametrize("outer", ["", "a/"])
def test_a_picture_beside_the_class_folders_is_named(opened, outer):
    with pytest.raises(UserError, match=rf"pets(\.zip)?: {outer}lost.PNG lies beside the class folders"):
        opened(*(f"{outer}{name}" for name in ("cat/1.png", "dog/1.png", "list.csv", "lost.PNG")))


def test_a_picture_beside_the_outer_folder_is_named(opened):
    with pytest.raises(UserError, match=r"pets(\.zip)?: lost.png lies beside the class folders"):
        opened("a/cat/1.png", "a/dog/1.png", "lost.png")


def test_a_list_beside_the_validation_classes_is_ignored(opened):
    pets = opened("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/val_annotations.txt")
    assert (pets.names, len(pets.validation)) == (("cat", "dog"), 1)


@pytest.mark.parametrize("held_out", ["test/cat/2.png", "test/2.png", "notes.txt"])
def test_a_list_beside_the_training_classes_is_ignored(opened, held_out):
    pets = opened("train/cat/1.png", "train/dog/1.png", "train/classes.txt", held_out)
    assert (pets.names, len(pets.validation)) == (("cat", "dog"), held_out.count("cat"))


def test_names_that_are_not_utf8_are_made_readable(tmp_path):
    root = write(tmp_path / os.fsdecode(b"h\xf6f"), os.fsdecode(b"train/caf\xe9/1.png"), "train/dog/1.png")
    write(root, os.fsdecode(b"val/caf\xe9/1.png"), "val/dog/\udcff.png")
    pets = folder_source(str(root)).open()
    assert (pets.name, pets.names) == ("h\ufffdf", ("caf\ufffd", "dog"))
    assert [pictures[0].encoded for pictures in (pets.train, pets.validation)] == [PNG, PNG]
    archive = zip_folder(write(tmp_path / "pets", "cat/1.png", "dog/1.png"), tmp_path / os.fsdecode(b"h\xf6f.zip"))
    assert folder_source(str(archive)).open().name == "h\ufffdf"


def test_classes_with_the_same_readable_name_are_refused(tmp_path):
    root = write(tmp_path / "pets", os.fsdecode(b"caf\xe9/1.png"), os.fsdecode(b"caf\xe8/1.png"), "dog/1.png")
    with pytest.raises(UserError, match="pets: 2 class folders are called 'caf\ufffd' in UTF-8; rename them"):
        folder_source(str(root)).open()


def test_names_are_composed_on_every_system(opened):
    trained = ["train/Bz/1.png", "train/Ba\u0308r/1.png", "train/\u00e9/1.png"]
    held_out = ["val/Bz/2.png", "val/B\u00e4r/2.png", "val/e\u0301/2.png"]
    pets = opened(*trained, *held_out)
    assert pets.names == ("Bz", "B\u00e4r", "\u00e9")
    assert contents(pets.train) == [(name, label) for label, name in enumerate(trained)]
    assert contents(pets.validation) == [(name, label) for label, name in enumerate(held_out)]
    with pytest.raises(UserError, match="2 class folders are called 'B\u00e4r' in UTF-8; rename them"):
        opened("train/B\u00e4r/1.png")


def test_a_class_may_be_called_train(opened):
    assert opened("train/1.png", "plane/1.png", "test/2.png").names == ("plane", "test", "train")


def test_a_class_that_is_called_train_may_have_folders_in_it(opened):
    pets = opened("train/1.png", "train/old/1.png", "plane/1.png")
    assert contents(pets.train) == [("plane/1.png", 0), ("train/1.png", 1), ("train/old/1.png", 1)]


@pytest.mark.parametrize("outer", ["a/b/", "a/b/train/"])
@pytest.mark.parametrize("beside", [(), ("README.txt", "a/LICENSE")])
def test_outer_folders_are_entered(opened, outer, beside):
    pets = opened(f"{outer}cat/1.png", f"{outer}dog/1.png", *beside)
    assert pets.names == ("cat", "dog")
    assert contents(pets.train) == [(f"{outer}cat/1.png", 0), (f"{outer}dog/1.png", 1)]


def test_folders_may_be_nested_as_deep_as_an_archive_goes():
    path = PurePosixPath("cat", *["x"] * 3000, "1.png")
    pets = open_class_folders(
        Tree.from_paths([path, PurePosixPath("dog/1.png")], (), where="pets", read=lambda _: PNG), name="pets"
    )
    assert contents(pets.train) == [(str(path), 0), ("dog/1.png", 1)]


def test_pictures_may_lie_deeper(opened):
    pets = opened("cat/images/old/1.png", "cat/2.png", "dog/images/1.png")
    assert contents(pets.train) == [("cat/2.png", 0), ("cat/images/old/1.png", 0), ("dog/images/1.png", 1)]


def test_pictures_need_no_file_ending(opened):
    assert contents(opened("cat/1", "dog/2.jpg_").train) == [("cat/1", 0), ("dog/2.jpg_", 1)]


def test_files_that_systems_leave_behind_are_ignored(opened):
    pets = opened(
        "cat/1.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/cat_boxes.txt", "cat/.hidden/1.png",
        "cat/Icon\r", "cat/@eaDir/1.png/thumb.jpg", "@eaDir/1.jpg", "#recycle/cow/1.png", "$RECYCLE.BIN/1.png",
        "lost+found/1.png", "System Volume Information/1.png", "@Recycle/1.png",
        "dog/1.png", ".git/1.png", "__MACOSX/cat/._1.png", "README.txt",
    )  # fmt: skip
    assert contents(pets.train) == [("cat/1.png", 0), ("dog/1.png", 1)]


def test_files_that_macos_adds_to_a_zip_are_ignored(tmp_path):
    members = {"cat/1.png": PNG, "dog/1.png": PNG, "__MACOSX/": b"", "__MACOSX/cat/": b"", "__MACOSX/cat/._1.png": b""}
    assert folder_source(str(write_zip(tmp_path / "pets.zip", members))).open().names == ("cat", "dog")


@pytest.mark.parametrize("names", [[], ["1.png", "2.png"], [".hidden/1.png"]])
def test_no_class_folders(opened, names, tmp_path):
    (tmp_path / "pets").mkdir()
    with pytest.raises(UserError, match=r"pets(\.zip)? has no class folders"):
        opened(*names)


def test_a_single_class_is_not_an_outer_folder(opened):
    assert opened("cat/1.png", "cat/2.png").names == ("cat",)


@pytest.mark.parametrize("inside", ["", "train/"])
def test_an_empty_class_is_named(tmp_path, inside):
    root = write(tmp_path / "pets", f"{inside}cat/1.png", f"{inside}dog/1.png", f"{inside}cow/.DS_Store")
    with pytest.raises(UserError, match=rf"the folder {inside}cow has no pictures"):
        folder_source(str(root)).open()
    (root / f"{inside}cow/.DS_Store").unlink()
    with pytest.raises(UserError, match=rf"the folder {inside}cow has no pictures"):
        folder_source(str(root)).open()


def test_an_empty_class_in_a_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "pets.zip", {"cat/1.png": PNG, "cow/": b"", "dog/1.png": PNG})
    with pytest.raises(UserError, match="the folder cow has no pictures"):
        folder_source(str(path)).open()


def test_an_empty_validation_class_is_named(tmp_path):
    root = write(tmp_path / "pets", "train/cat/1.png", "train/dog/1.png", "val/cat/1.png")
    (root / "val/dog").mkdir()
    with pytest.raises(UserError, match="the folder val/dog has no pictures"):
        folder_source(str(root)).open()


def test_a_validation_class_without_training_pictures_is_named(opened):
    with pytest.raises(UserError, match=r"class 'cow' is in val/ but not in train/"):
        opened("train/cat/1.png", "train/dog/1.png", "val/cow/1.png")


@pytest.mark.parametrize(
    ("source", "wrong"), [("", "is not set"), ("nowhere/at/all", "'nowhere/at/all' does not exist")]
)
def test_a_missing_path(source, wrong):
    with pytest.raises(UserError, match=f"^data.source {wrong}; give a folder, a zip, tar or Parquet files, digits, "):
        folder_source(source)


def test_a_file_that_is_neither_folder_nor_zip(tmp_path):
    (tmp_path / "1.png").write_bytes(PNG)
    with pytest.raises(UserError, match=r"1\.png is neither a folder nor a complete zip"):
        folder_source(str(tmp_path / "1.png")).open()


def test_a_tilde_stands_for_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_class_folders(tmp_path / "pets")
    assert folder_source("~/pets").open().names == ("cat", "dog")


def test_links_are_followed(tmp_path):
    write_class_folders(tmp_path / "real")
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "tom").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "pets" / "rex").symlink_to(tmp_path / "real" / "dog")
    assert len(folder_source(str(tmp_path / "pets")).open().train) == 8


def test_a_link_to_an_outer_folder_is_named(tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    (pets / "cat" / "again").symlink_to(pets)
    with pytest.raises(UserError, match="pets/cat/again is a link to a folder that contains it; remove it"):
        folder_source(str(pets))


def test_a_link_to_nothing_is_named(tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    (pets / "cat" / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file or directory; repair or remove it$"):
        folder_source(str(pets))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"pets/cat cannot be read: Permission denied; check its permissions$"):
        folder_source(str(write_class_folders(tmp_path / "pets")))


def test_a_pipe_is_named_and_not_opened(tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    os.mkfifo(pets / "cat" / "pipe.png")
    with pytest.raises(UserError, match=r"cat/pipe\.png in .*pets is a pipe or a device, not a file; remove it$"):
        folder_source(str(pets))


def test_a_picture_that_vanished_is_named(tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    opened = folder_source(str(pets)).open()
    (pets / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"cat/0\.png cannot be read: No such file or directory; repair or remove it$"):
        opened.train[0]


def test_a_huge_file_is_named_and_not_read(tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    for name in ("0.mp4", "0.png"):
        with (pets / "cat" / name).open("wb") as file:
            file.truncate(MAX_BYTES + 1)
    opened = folder_source(str(pets)).open()
    with pytest.raises(UserError, match=r"cat/0\.png is too large for a picture: 268,435,457 bytes; remove it"):
        opened.train[0]
    # A film is no picture.
    assert opened.passed_over == ("cat/0.mp4",)


def test_files_that_are_no_pictures_are_passed_over(opened):
    pets = opened("cat/1.png", "cat/list", "dog/1.png")
    assert pets.passed_over == ()
    assert len(pets.train) == 3


def test_films_are_not_read_to_be_passed_over(tmp_path, monkeypatch):
    root = write(tmp_path / "pets", "cat/1", "dog/1.png")
    (root / "cat" / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(10**6))
    source = folder_source(str(root))
    monkeypatch.setattr("jaxcnn.data.sources.folder.read_file", lambda path: pytest.fail(f"{path} is read"))
    found = source.open()
    assert found.passed_over == ("cat/film.mp4",)
    assert [file for file, _ in found.train.listed()] == ["cat/1", "dog/1.png"]


def test_raw_files_of_cameras_are_passed_over(tmp_path):
    """They begin like TIFF: beside each photograph, its thumbnail would be another picture."""
    pets = write(tmp_path / "pets", "cat/1.png", "dog/1.png")
    (pets / "cat" / "1.NEF").write_bytes(encode(make_picture(0, seed=0, size=8), "TIFF"))
    found = folder_source(str(pets)).open()
    assert (found.passed_over, len(found.train)) == (("cat/1.NEF",), 2)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_texts_in_class_folders_are_passed_over(tmp_path, kind):
    pets = write_class_folders(tmp_path / "pets", count=2)
    (pets / "cat" / "notes.txt").write_text("two cats")
    (pets / "dog" / "sizes").write_text("1, 2")
    path = pets if kind == "folder" else zip_folder(pets, tmp_path / "pets.zip")
    found = folder_source(str(path)).open()
    assert found.passed_over == ("cat/notes.txt", "dog/sizes")
    assert [name for name, _ in contents(found.train)] == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert [picture.file for picture in (found.train[0], found.train[3])] == ["cat/0.png", "dog/1.png"]
    # A class of nothing else has no pictures.
    (pets / "cow").mkdir()
    (pets / "cow" / "notes.txt").write_text("no cow")
    with pytest.raises(UserError, match="the folder cow has no pictures; add some or remove it"):
        folder_source(str(pets)).open()


def test_every_change_changes_the_key(tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    keys = [folder_source(str(pets)).key]
    assert folder_source(str(pets)).key == keys[0]
    picture = pets / "cat" / "0.png"

    (pets / "cow").mkdir()
    keys.append(folder_source(str(pets)).key)
    picture.rename(pets / "cat" / "zero.png")
    keys.append(folder_source(str(pets)).key)
    (pets / "cat" / "zero.png").write_bytes(PNG + b"more")
    keys.append(folder_source(str(pets)).key)
    os.utime(pets / "cat" / "zero.png", ns=(1, 1))
    keys.append(folder_source(str(pets)).key)
    pets.rename(tmp_path / "animals")
    keys.append(folder_source(str(tmp_path / "animals")).key)
    assert len(set(keys)) == len(keys)


def test_ignored_files_do_not_change_the_key(tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    key = folder_source(str(pets)).key
    write(pets, ".git/1.png", "cat/Thumbs.db")
    assert folder_source(str(pets)).key == key


def test_the_key_of_a_zip_depends_on_its_time_and_size(tmp_path):
    path = zip_folder(write_class_folders(tmp_path / "pets"), tmp_path / "pets.zip")
    key = folder_source(str(path)).key
    assert key == folder_source(str(path)).key
    os.utime(path, ns=(1, 1))
    later = folder_source(str(path)).key
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(1, 1))
    assert len({key, later, folder_source(str(path)).key}) == 3


def test_the_key_depends_on_the_absolute_path(tmp_path, monkeypatch):
    pets = write_class_folders(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    assert folder_source("pets").key == folder_source(str(pets)).key
    assert make_key(pets, 1) != make_key(tmp_path / "other" / "pets", 1)


def test_the_key_is_the_same_as_in_earlier_versions(tmp_path):
    """Another order of the files would make every existing cache entry useless."""
    pets = write(tmp_path / "pets", "a/1.png", "a b/1.png", "a-b/c/1.png", "a/b/1.png")
    files = sorted(PurePosixPath(file.relative_to(pets).as_posix()) for file in pets.rglob("*.png"))
    identity = [(str(file), len(PNG), (pets / file).stat().st_mtime_ns) for file in files]
    assert folder_source(str(pets)).key == make_key(pets.resolve(), identity, ["a", "a b", "a-b", "a-b/c", "a/b"])


def test_classes_are_not_searched_before_the_source_is_opened(tmp_path, monkeypatch):
    """Only the key is needed if the pictures are in the cache."""
    monkeypatch.setattr(Tree, "from_sorted", None)
    assert folder_source(str(write_class_folders(tmp_path / "pets"))).key.startswith("pets-")


def test_the_key_is_a_file_name(tmp_path):
    pets = write_class_folders(tmp_path / ("my pets: 2024/5" + "x" * 100))
    assert "/" not in folder_source(str(pets)).key
    assert len(folder_source(str(pets)).key) < 80


part = st.sampled_from(
    ["cat", "dog", "train", "Train", "val", "test", "train_set", "test_set", "images", ".x", "1.png"]
)
paths = st.builds(
    lambda parts, index: PurePosixPath(*parts, f"{index}.png"), st.lists(part, max_size=4), st.integers(0, 5)
)


@given(files=st.lists(paths, max_size=15, unique=True), order=st.randoms())
def test_any_listing_gives_a_data_set_or_one_line(files, order):
    def open_files(listing):
        try:
            return open_class_folders(
                Tree.from_paths(listing, (), where="pets", read=lambda path: str(path).encode()), name="pets"
            )
        except UserError as error:
            return str(error)

    opened = open_files(files)
    order.shuffle(files)
    again = open_files(files)
    if isinstance(opened, str):
        assert again == opened
        assert opened.startswith("pets")
        return
    for pictures, same in ((opened.train, again.train), (opened.validation, again.validation)):
        assert contents(pictures) == contents(same)
        for index in range(len(pictures)):
            picture = pictures[index]
            assert opened.names[picture.label] in PurePosixPath(picture.encoded.decode()).parts[:-1]
    trained = contents(opened.train)
    assert {label for _, label in trained} == set(range(len(opened.names)))
    assert not {name for name, _ in trained} & {name for name, _ in contents(opened.validation)}
