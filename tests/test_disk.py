"""Files are whole, or as they were before."""

import os

import pytest

from jaxcnn.disk import write_atomically


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
