import hashlib
import os

import pytest

from server import files


def test_a_file_is_opened_and_told_from_others(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with files.open_file(path) as file:
        file.read(3)
        assert files.digest(file) == hashlib.sha256(b"content").hexdigest()
        assert files.signature(file) == files.signature_of(path)
        assert file.read() == b"content"
        path.rename(tmp_path / "moved")
        path.write_bytes(b"another")
        assert files.signature(file) != files.signature_of(path)


def test_a_file_is_told_by_its_time_its_size_and_its_place(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    seen = set()
    for content, written in ((b"content", 1), (b"content", 2), (b"longer content", 2)):
        path.write_bytes(content)
        os.utime(path, ns=(written, written))
        seen.add(files.signature_of(path))
    other.write_bytes(b"longer content")
    os.utime(other, ns=(2, 2))
    other.replace(path)
    assert len({*seen, files.signature_of(path)}) == 4


def test_a_link_is_the_file_that_it_leads_to(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with files.open_file(tmp_path / "link") as file:
        assert file.read() == b"content"
        assert files.signature(file) == files.signature_of(tmp_path / "link")


def test_what_is_no_file_is_not_there(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe", tmp_path / "file" / "within"):
        with pytest.raises(FileNotFoundError):
            files.open_file(path)
    assert files.signature_of(tmp_path / "absent") is None


def test_a_file_that_may_not_be_looked_at_is_none_that_is_not_there(locked):
    with pytest.raises(PermissionError):
        files.open_file(locked / "file")
    assert files.signature_of(locked / "file") is None


def test_neither_is_one_whose_name_is_too_long(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        files.open_file(tmp_path / ("x" * 300))
