"""Files are whole, or as they were before."""

import errno
import os
import re
import shutil
from types import SimpleNamespace

import pytest

from jaxcnn.disk import check_room, describe, remedy, sync, write_atomically
from jaxcnn.errors import UserError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_reaches_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    def recorded(descriptor):
        sync(descriptor)
        seen.append((path.read_text(), os.fstat(descriptor).st_size))

    path, seen, sync = tmp_path / "a.json", [], os.fsync
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", recorded)
    write_atomically(path, "newer")
    assert seen == [("old", 5)]
    assert path.read_text() == "newer"


def test_a_full_disk_is_reported_with_the_needed_and_the_free_space(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device \(0\.002 MB needed, [\d,.]+ MB free\)") as caught:
        write_atomically(tmp_path / "a.json", "x" * 2000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.json"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_reach_the_disk_is_named(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=re.escape(f"Input/output error: '{tmp_path}'")):
        sync(tmp_path)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EACCES, "allow this user to read and write there"),
        (errno.EROFS, "allow this user to read and write there"),
        (errno.EIO, "check the disk"),
        (errno.ENOENT, ""),
    ],
)
def test_what_to_do_about_an_error_of_the_disk(number, advice):
    assert remedy(OSError(number, "why")) == advice


def test_a_failed_write_is_reported_even_if_nothing_can_be_removed(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: os.stat(tmp_path / "gone"))
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "a.json", "x")


def test_other_errors_are_in_the_systems_words(tmp_path):
    assert describe(OSError(errno.EIO, "Input/output error"), tmp_path, needed=1) == "Input/output error"
    full = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert re.fullmatch(r"Disk quota exceeded \([\d,.]+ MB free\)", describe(full, tmp_path))
    assert describe(full, tmp_path / "gone") == "Disk quota exceeded"


def test_what_does_not_fit_is_refused_with_what_is_needed_and_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_500_000))
    check_room(tmp_path, 1_500_000, what="the pictures", advice="make room")
    message = f"the disk is too full: the pictures take 1,234.6 MB in {tmp_path}, where 1.5 MB are free; make room"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_room(tmp_path, 1_234_567_890, what="the pictures", advice="make room")
