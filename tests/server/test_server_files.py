import hashlib
import os

import pytest

from server import files


def test_a_file_is_opened_and_has_a_signature(tmp_path):
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


def test_a_signature_depends_on_time_size_and_inode(tmp_path):
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


def test_a_link_stands_for_its_target(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with files.open_file(tmp_path / "link") as file:
        assert file.read() == b"content"
        assert files.signature(file) == files.signature_of(tmp_path / "link")


def test_folders_and_pipes_count_as_missing(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe", tmp_path / "file" / "within"):
        with pytest.raises(FileNotFoundError):
            files.open_file(path)
    assert files.signature_of(tmp_path / "absent") is None


def test_a_forbidden_file_is_not_reported_as_missing(locked):
    with pytest.raises(PermissionError):
        files.open_file(locked / "file")
    assert files.signature_of(locked / "file") is None


def test_a_name_that_is_too_long_is_not_reported_as_missing(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        files.open_file(tmp_path / ("x" * 300))
