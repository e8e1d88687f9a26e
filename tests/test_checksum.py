"""Records with a checksum in them."""

import json
import zlib

import pytest

from jaxcnn import checksum
from jaxcnn.checksum import ChecksumError, checksum_file, seal, unseal

RECORD = {"name": "é", "values": [1, 2.5, None], "nested": {"b": 1, "a": 2}}


def test_a_record_comes_back_without_its_checksum_however_it_is_formatted():
    assert unseal(json.loads(json.dumps(seal(RECORD)))) == RECORD
    assert unseal(json.loads(json.dumps(seal(RECORD), indent=2, sort_keys=True, ensure_ascii=False))) == RECORD


def test_a_record_without_a_checksum_is_accepted():
    assert unseal(RECORD) == RECORD
    assert unseal([RECORD]) == [RECORD]


@pytest.mark.parametrize("change", [{"name": "e"}, {"values": [1, 2.5]}, {"more": 0}, {"checksum": "0"}])
def test_a_changed_record_is_refused(change):
    with pytest.raises(
        ChecksumError, match=r"^its values differ from its checksum, which edits by hand have to remove$"
    ):
        unseal(seal(RECORD) | change)


def test_a_file_has_the_checksum_of_its_bytes_whatever_its_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"123456789")
    assert checksum_file(path) == "cbf43926"  # The check value of CRC-32.
    path.write_bytes(bytes(2**20 + 1))
    larger = checksum_file(path)
    path.write_bytes(bytes(2**20 + 2))
    assert checksum_file(path) != larger


@pytest.mark.parametrize("size", [0, 1, 9, 10, 25])
def test_a_large_file_has_a_checksum_for_each_part(tmp_path, monkeypatch, size):
    monkeypatch.setattr(checksum, "CHUNK", 9)
    content = (b"123456789" * 3)[:size]
    (tmp_path / "file").write_bytes(content)
    parts = [content[start : start + 9] for start in range(0, size, 9)]
    assert checksum.checksum_chunks(tmp_path / "file") == [f"{zlib.crc32(part):08x}" for part in parts]
