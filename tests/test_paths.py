"""Paths from options."""

import os
from pathlib import Path

import pytest

from jaxcnn.errors import UserError
from jaxcnn.paths import check_address, check_output, named_path


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path("~/a", option="x") == tmp_path / "a"
    assert named_path("a/~b", option="x") == Path("a/~b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^data\.source is empty; give a path or leave the option out$"),
        ("~nosuchuser/x", r"^data\.source is '~nosuchuser/x', but there is no such home directory"),
        ("s3://runs/mine", r"^data\.source is 's3://runs/mine', an address; give a path on a disk of this machine$"),
        ("a\0b", r"^data\.source is 'a\\x00b', which cannot be read: embedded null byte$"),
        ("x" * 5000, r"^data\.source is 'x{200}\.\.\.', which cannot be read: File name too long$"),
    ],
)
def test_an_invalid_path_is_named_by_its_option(text, message):
    with pytest.raises(UserError, match=message):
        named_path(text, option="data.source")


def test_a_link_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot be read: Too many levels"):
        named_path(str(tmp_path / "loop"), option="data.source")


def test_a_path_below_a_file_does_not_exist(tmp_path):
    (tmp_path / "file").touch()
    assert not named_path(str(tmp_path / "file" / "x"), option="data.source").exists()


def test_a_file_that_cannot_be_written_at_the_end_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for path in ("x.md", "new/folder/x.md", tmp_path / "x.md", "file"):
        check_output(Path(path))
    assert os.listdir() == ["file"]
    for path, message in {
        "file/new/x.md": f"^page 'file/new/x.md' cannot be written: {tmp_path}/file is a file; give another --page$",
        ".": "^page is '.', which is a folder; give the name of a file in it$",
    }.items():
        with pytest.raises(UserError, match=message):
            check_output(Path(path), option="page")
    # Root may write everywhere, so the system is played.
    monkeypatch.setattr(os, "access", lambda folder, mode: (folder, mode) != (tmp_path, os.W_OK | os.X_OK))
    message = (
        f"^output 'new/x.md' cannot be written: {tmp_path} may not be written by this user; give another --output$"
    )
    with pytest.raises(UserError, match=message):
        check_output(Path("new/x.md"))


def test_folders_in_buckets_have_addresses():
    for address in ("s3://runs/mine", "gs://my.runs-1/a/b_c/", "s3://runs/with a space/é"):
        assert check_address(address, option="bucket") == address
