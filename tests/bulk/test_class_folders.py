"""Folders of classes: no picture is left out, whatever its name, time or mode, and no class shares a folder."""

import errno
import os
from pathlib import Path

import pytest
from pictures import write_zip

from jaxcnn.bulk.class_folders import ClassFolders, folder_names
from jaxcnn.bulk.picture_files import PictureFile, find_pictures


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: bytes) -> PictureFile:
    """Writes a file; all have the same time."""
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    return PictureFile(name)


def contents() -> list[bytes]:
    """Returns what lies in the folder of the class, hidden files too."""
    return sorted(path.read_bytes() for path in Path("sorted/red").iterdir())


@pytest.mark.parametrize("second", [b"two", b"one"])
@pytest.mark.parametrize("copy", [False, True])
def test_pictures_that_differ_only_in_their_folder_are_all_sorted(copy, second):
    files = [write("cam1/0001.bmp", b"one"), write("cam2/0001.bmp", second), write("cam3/0001.bmp", b"six")]
    for _ in range(2):
        folders = ClassFolders(Path("sorted"), ["red"], copy=copy)
        for file in files:
            folders.place(file, "red")
        assert contents() == sorted([b"one", second, b"six"])


def test_pictures_of_equal_content_in_zips_are_all_sorted():
    for name in ("a.zip", "b.zip"):
        write_zip(Path(name), {"0001.bmp": b"one"})
    folders = ClassFolders(Path("sorted"), ["red"], copy=False)
    for file in find_pictures(["a.zip", "b.zip"], [])[0]:
        folders.place(file, "red")
    assert contents() == [b"one", b"one"]


def test_a_picture_that_has_changed_is_copied_again():
    for content in (b"old", b"new", b"now"):
        ClassFolders(Path("sorted"), ["red"], copy=True).place(write("cam1/0001.bmp", content), "red")
    assert contents() == [b"now", b"old"]


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_copies_of_read_only_pictures(here, is_cut_off):
    """Root may write what is read-only, other users not."""
    file = write("cam1/0001.bmp", b"one")
    os.chmod("cam1/0001.bmp", 0o444)
    (here / "sorted" / "red").mkdir(parents=True)
    if is_cut_off:
        write("sorted/red/.0001.bmp", b"o")
        os.chmod("sorted/red/.0001.bmp", 0o444)
    for path in (here, *here.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, 65534, -1)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        ClassFolders(Path("sorted"), ["red"], copy=True).place(file, "red")
    finally:
        os.seteuid(user)
    assert contents() == [b"one"]
    copy = Path("sorted/red/0001.bmp").stat()
    assert (copy.st_mode & 0o777, copy.st_mtime) == (0o444, 1)


@pytest.mark.parametrize("name", ["x" * 251 + ".bmp", "\N{HIRAGANA LETTER A}" * 83 + ".bmp", "x" * 240])
@pytest.mark.parametrize("copy", [False, True])
def test_names_that_are_too_long_are_cut(name, copy):
    files = [write(f"{folder}/{name}", folder.encode()) for folder in ("cam1", "cam2")]
    for _ in range(2):
        folders = ClassFolders(Path("sorted"), ["red"], copy=copy)
        for file in files:
            folders.place(file, "red")
        assert contents() == [b"cam1", b"cam2"]
    assert {path.suffix for path in Path("sorted/red").iterdir()} == {Path(name).suffix}


def test_a_long_name_with_a_dot_near_its_start_is_cut():
    file = write(f"cam1/a.{'x' * 250}", b"one")
    folders = ClassFolders(Path("sorted"), ["red"], copy=True)
    folders.place(file, "red")
    folders.place(write(f"cam2/a.{'x' * 250}", b"two"), "red")
    assert contents() == [b"one", b"two"]


def test_a_disk_that_refuses_permissions_gets_copies(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    ClassFolders(Path("sorted"), ["red"], copy=True).place(write("cam1/0001.bmp", b"one"), "red")
    assert contents() == [b"one"]
    assert Path("sorted/red/0001.bmp").stat().st_mtime == 1


def test_no_two_classes_share_a_folder():
    assert folder_names(("cat", "A", "a")) == {"cat": "cat", "A": "A (1)", "a": "a (2)"}
    for names in (("A", "a", "A (0)"), ("a (1)", "A", "a"), ("A", "a", "a (0)", "A (0)_", "a (1)")):
        folders = folder_names(names)
        assert len({folder.lower() for folder in folders.values()}) == len(names)
        assert folders.keys() == set(names)
