import struct
import tracemalloc
import zipfile
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_zip

from jaxcnn.data.sources import archive
from jaxcnn.data.sources.archive import Archive
from jaxcnn.errors import UserError

COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.zip"


def write_compressed(path, members, compression):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


def test_files_and_folders_are_listed_and_read(path):
    write_zip(path, {"a/": b"", "a/one.png": b"1" * 9, "two.png": b"2"})
    opened = Archive(path)
    assert opened.files == [PurePosixPath("a/one.png"), PurePosixPath("two.png")]
    assert opened.folders == [PurePosixPath("a")]
    assert opened.read(PurePosixPath("a/one.png")) == b"1" * 9


def test_backslashes_separate_folders(path):
    write_zip(path, {"a\\": b"", "a\\one.png": b"1", "a\\b\\": b""})
    opened = Archive(path)
    assert opened.files == [PurePosixPath("a/one.png")]
    assert opened.folders == [PurePosixPath("a"), PurePosixPath("a/b")]
    assert opened.read(PurePosixPath("a/one.png")) == b"1"


@pytest.mark.parametrize(
    ("written", "expected"),
    [("Bär".encode(), "Bär"), ("Ba\u0308r".encode(), "Ba\u0308r"), ("Bär".encode("cp437"), "Bär"), (b"B\xe4r", "BΣr")],
)
def test_names_without_the_utf8_flag_are_utf8_or_code_page_437(path, written, expected):
    name = "x" * len(written)
    write_zip(path, {f"{name}/one.png": b"1"})
    path.write_bytes(path.read_bytes().replace(name.encode(), written))
    assert Archive(path).files == [PurePosixPath(expected, "one.png")]
    assert Archive(path).read(PurePosixPath(expected, "one.png")) == b"1"


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_a_file_that_is_not_a_zip_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"some\.zip is neither a folder nor a complete zip \(.*\); copy or download it again$"
    ):
        Archive(path)


def test_a_missing_zip_is_refused(path):
    with pytest.raises(
        UserError, match=r"some\.zip cannot be read: No such file or directory; check the path and its permissions$"
    ):
        Archive(path)


@pytest.mark.parametrize("name", ["../one.png", "a/../../one.png", "/etc/one.png", "..\\one.png"])
def test_members_outside_the_zip_are_refused(path, name):
    write_zip(path, {"a/one.png": b"1", name: b"2"})
    with pytest.raises(UserError, match=r"^\S*some\.zip has a member that points out of the zip, .*; remove it$"):
        Archive(path)
    assert [file.name for file in path.parent.iterdir()] == ["some.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["a/1.png", "a//1.png", ".\\a\\1.png"])
def test_different_members_with_the_same_path_are_refused(path, again):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("a/1.png", b"1"), (again, b"1"), (".DS_Store", b"1"), (".DS_Store", b"2")):
            file.writestr(name, content)
    assert Archive(path).files == [PurePosixPath("a/1.png"), PurePosixPath(".DS_Store")]
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(again, b"2")
    with pytest.raises(
        UserError, match=r"some\.zip has two members called 'a/1\.png' that differ; remove one of them$"
    ):
        Archive(path)


@given(
    cut=st.integers(0, 300),
    position=st.integers(0, 300),
    junk=st.binary(max_size=4),
    name=st.sampled_from(["a", "ä"]),
    compression=st.sampled_from(COMPRESSIONS),
)
def test_a_damaged_zip_is_read_or_refused_in_one_line(tmp_path_factory, cut, position, junk, name, compression):
    path = tmp_path_factory.mktemp("zips") / "some.zip"
    write_compressed(path, {f"{name}/1.png": b"1" * 40, "b/2.png": b"2" * 40}, compression)
    content = bytearray(path.read_bytes())
    content[position : position + len(junk)] = junk
    path.write_bytes(content[: len(content) - cut])
    message = ""
    try:
        opened = Archive(path)
        for file in opened.files:
            opened.read(file)
    except UserError as error:
        message = str(error)
    assert not message or "some.zip" in message
    assert "\n" not in message


def test_a_truncated_zip_is_refused(path):
    write_zip(path, {"a/1.png": b"1" * 1000})
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="a complete zip"):
        Archive(path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_member_is_named(path, compression):
    write_compressed(path, {"a/1.png": bytes(range(256))}, compression)
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^a/1\.png in .*some\.zip is damaged"):
        Archive(path).read(PurePosixPath("a/1.png"))


def test_a_damaged_member_with_a_line_break_in_its_name_is_named_in_one_line(path):
    write_zip(path, {"a\n1.png": b"1111"})
    path.write_bytes(path.read_bytes().replace(b"1111", b"1121", 1))
    with pytest.raises(UserError, match=r"^'a\\n1\.png' in .*some\.zip is damaged"):
        Archive(path).read(PurePosixPath("a\n1.png"))


def test_a_member_with_a_damaged_name_is_named(path):
    write_zip(path, {"ä/1.png": b"1"})
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\0\xff", 1))
    with pytest.raises(UserError, match=r"^ä/1\.png in .*some\.zip is damaged \('utf-8' codec"):
        Archive(path).read(PurePosixPath("ä/1.png"))


@pytest.mark.parametrize(
    ("flags", "method", "wrong"),
    [
        (1, 0, r"is encrypted; make it again without a password$"),
        (65, 0, r"is encrypted; make it again without a password$"),
        (0, 9, r"cannot be decompressed \(.*compression.*\); make it again with Deflate$"),
    ],
)
def test_a_zip_that_python_cannot_decompress_says_why(path, flags, method, wrong):
    write_zip(path, {"a/1.png": b"1"})
    content = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # both copies of the header
        struct.pack_into("<HH", content, content.index(header) + offset, flags, method)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^\S*some\.zip {wrong}"):
        Archive(path).read(PurePosixPath("a/1.png"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_bomb_takes_no_more_memory_than_its_size_says(path, compression):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/1.png", bytes(30 * 2**20))
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\x01\x02") + 24, 1000)
    path.write_bytes(content)
    opened = Archive(path)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a/1\.png in .*some\.zip is damaged"):
        opened.read(PurePosixPath("a/1.png"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_huge_member_is_refused_before_it_is_read(path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/1.png", b"0" * 1001)
        file.writestr("a/2.png", b"0" * 1000)
    with pytest.raises(UserError, match=r"a/1\.png in .* is too large for a picture: 1,001 bytes"):
        Archive(path).read(PurePosixPath("a/1.png"))
    assert len(Archive(path).read(PurePosixPath("a/2.png"))) == 1000
