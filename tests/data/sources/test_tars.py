import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, make_picture

from jaxcnn.config import DataConfig
from jaxcnn.data import load
from jaxcnn.data.loading import find_source
from jaxcnn.errors import UserError


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def picture(index: int) -> bytes:
    return encode(make_picture(index % 3, seed=index))


def members(*indices: int) -> dict[str, bytes]:
    """Examples whose class is their number modulo 3."""
    found = {}
    for index in indices:
        found |= {f"{index:04}.jpg": picture(index), f"{index:04}.cls": f"{index % 3}\n".encode()}
        found |= {f"{index:04}.json": b"{}", f"{index:04}.txt": b"a pet"}
    return found


def shards(folder: Path, classes: str = "cat\ncow\ndog\n") -> Path:
    write_tar(folder / "pets-train-000.tar", members(0, 1, 2, 3))
    write_tar(folder / "pets-train-001.tar", {"deep/": b"", **members(4, 5)})
    write_tar(folder / "pets-val-000.tar", members(6, 7))
    write_tar(folder / "pets-test-000.tar", members(8))
    if classes:
        (folder / "classes.txt").write_text(classes)
    return folder


def opened(path: Path):
    return find_source(DataConfig(source=str(path))).open()


def test_what_systems_leave_behind_is_ignored(tmp_path):
    junk = ("._0000.jpg", "__MACOSX/._0000.jpg", "@eaDir/0000.jpg/SYNOPHOTO_THUMB_M.jpg", ".hidden/0001.png")
    write_tar(tmp_path / "pets.tar", members(0, 1) | dict.fromkeys(junk, picture(2)))
    (tmp_path / "._pets.tar").write_bytes(b"\0\5\x16\7")
    train = opened(tmp_path).train
    assert [train[index].file for index in range(len(train))] == ["pets.tar/0000.jpg", "pets.tar/0001.jpg"]


def test_shards_are_split_by_their_names(tmp_path):
    dataset = opened(shards(tmp_path / "pets"))
    assert (dataset.name, dataset.names) == ("pets", ("cat", "cow", "dog"))
    assert [dataset.train[index].encoded for index in range(6)] == [picture(index) for index in range(6)]
    assert [dataset.train[index].label for index in range(len(dataset.train))] == [0, 1, 2, 0, 1, 2]
    assert [dataset.validation[index].label for index in range(len(dataset.validation))] == [0, 1]
    last = dataset.train[5]
    assert last.file == "pets-train-001.tar/0005.jpg"
    assert last.where == f"0005.jpg in {tmp_path}/pets/pets-train-001.tar"


@pytest.mark.parametrize("store", ["decoded", "encoded"])
def test_both_stores_take_them(tmp_path, store):
    config = DataConfig(source=str(shards(tmp_path / "pets")), cache_dir=str(tmp_path / "cache"), store=store)
    dataset = load(config)
    assert (len(dataset.train), len(dataset.validation), dataset.store.kind) == (6, 2, store)
    assert dataset.train.images[:].shape == (6, 32, 32, 3)
    assert dataset.validation.file(1) == "pets-val-000.tar/0007.jpg"


def test_names_may_be_written_by_windows(tmp_path):
    shards(tmp_path / "pets")
    (tmp_path / "pets" / "classes.txt").write_bytes("\ufeffcat\r\ncow\r\ndog\r\n".encode())
    assert opened(tmp_path / "pets").names == ("cat", "cow", "dog")


def test_one_file_and_numbers_in_place_of_names(tmp_path):
    path = write_tar(tmp_path / "all.TAR", members(0, 1, 3, 5))
    dataset = opened(path)
    assert (dataset.name, dataset.names, len(dataset.validation)) == ("all", ("0", "1", "2"), 0)
    assert [dataset.train[index].label for index in range(4)] == [0, 1, 0, 2]


def test_a_changed_file_has_another_key(tmp_path):
    config = DataConfig(source=str(shards(tmp_path / "pets")))
    keys = {find_source(config).key}
    for change in (
        lambda: write_tar(tmp_path / "pets" / "pets-train-001.tar", members(4, 5, 9)),
        lambda: (tmp_path / "pets" / "classes.txt").write_text("Cat\ncow\ndog\n\n"),
    ):
        change()
        keys.add(find_source(config).key)
    assert len(keys) == 3


def test_labels_of_other_files_than_pictures_are_listed(tmp_path):
    shards(tmp_path / "pets")
    write_tar(tmp_path / "pets" / "pets-train-001.tar", members(4) | {"a/5.nef": b"x", "a/5.cls": b"1"})
    assert opened(tmp_path / "pets").passed_over == ("pets-train-001.tar/a/5.cls",)


def test_class_folders_go_first(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").write_bytes(picture(0))
    write_tar(tmp_path / "pets" / "backup.tar", members(0))
    assert opened(tmp_path / "pets").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1.jpg": b"x"}, r"1\.jpg in .*a\.tar has no class; add 1\.cls with its index"),
        ({"1.jpg": b"x", "1.cls": b"cat"}, r"1\.cls in .*a\.tar is 'cat'; it has to be the index of a class"),
        ({"1.jpg": b"x", "1.cls": b"-1"}, r"1\.cls in .*a\.tar is '-1'; it has to be the index of a class"),
        (
            {"1.jpg": b"x", "1.cls": b"1764460800"},
            r"1\.cls in .*a\.tar is '1764460800'; it has to be the index of a class",
        ),
        ({"1.jpg": b"x", "1.png": b"x", "1.cls": b"0"}, r"a\.tar has two pictures for 1, 1\.jpg and 1\.png"),
        ({"1.txt": b"x"}, r"pets has no pictures with a \.cls file beside each"),
        ({"1.jpg": b"x", "1.cls": b"3"}, r"pets has pictures of class 3, but classes\.txt names 3; add the others"),
    ],
)
def test_what_is_not_the_layout_is_refused(tmp_path, content, message):
    write_tar(tmp_path / "pets" / "a.tar", content)
    (tmp_path / "pets" / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "pets")


def test_repeated_names_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"classes\.txt has 'cat' more than once; give every class its own name"):
        opened(shards(tmp_path / "pets", "cat\ndog\ncat\n"))


def test_damaged_and_compressed_files_are_refused(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {f"{index}.jpg": bytes(2000) for index in range(3)} | {"0.cls": b"0"})
    packed = write_tar(tmp_path / "packed.tar", members(0), "w:gz")
    for name, content in (
        ("cut", whole.read_bytes()[:4000]),
        ("noise", np.random.default_rng(0).bytes(4000)),
        ("packed", packed.read_bytes()),
    ):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.tar is not a complete, uncompressed tar file \(.*\); make it"):
            opened(path)


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content, start: flip(content, start + 5), r"damaged or cut off at byte {}"),
        (lambda content, start: content[:start], r"damaged or cut off at byte {}"),
        (lambda content, start: content[: start + 100], r"damaged or cut off at byte {}"),
        (lambda content, start: content + content, r"more behind its end at byte [\d,]+, such as another tar file"),
    ],
)
def test_members_that_tarfile_does_not_list_are_missed(tmp_path, damage, message):
    """It stops at the first damaged header, as if the file ended there."""
    path = write_tar(tmp_path / "a.tar", members(0, 1, 2))
    with tarfile.open(path) as archive:
        start = archive.getmember("0001.jpg").offset
    path.write_bytes(damage(path.read_bytes(), start))
    with pytest.raises(UserError, match=rf"a\.tar is not a complete, .* \({message.format(f'{start:,}')}\)"):
        opened(path)


def test_a_file_that_was_given_to_tar_twice_is_read_once(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(0))
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("0000.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "0000.jpg"
        archive.addfile(info)
    assert len(opened(path).train) == 1


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("name", ["0001.jpg", "0001.cls"])
def test_links_are_refused(tmp_path, kind, name):
    path = write_tar(tmp_path / "a.tar", members(0))
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "0000" + name[4:]
        archive.addfile(info)
    with pytest.raises(UserError, match=rf"^{name} in .*a\.tar is a link; make it again with tar --dereference"):
        opened(path)


def test_a_size_below_zero_does_not_loop(tmp_path):
    info = tarfile.TarInfo("0001.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-512).to_bytes(12, signed=True)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    path = write_tar(tmp_path / "a.tar", members(0))
    path.write_bytes(bytes(header) + path.read_bytes())
    with pytest.raises(UserError, match=r"a\.tar is not a complete, uncompressed tar file \(a size below 0\); make it"):
        opened(path)


def test_a_picture_that_vanishes_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(0))
    dataset = opened(path)
    path.unlink()
    with pytest.raises(UserError, match=r"^0000\.jpg in .*a\.tar cannot be read: No such file .*; repair or remove it"):
        dataset.train[0]
