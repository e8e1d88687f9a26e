import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode, make_picture, tiny_imagenet_members, write_tiny_imagenet_zip, write_zip
from PIL import Image

from jaxcnn.data.sources.archive import Archive
from jaxcnn.data.sources.tfds import tfds_source
from jaxcnn.data.sources.tiny_imagenet import URL, TinyImageNet, read_layout, readable_names, tiny_imagenet_source
from jaxcnn.errors import UserError

ROOT = "tiny-imagenet-200/"


def open_zip(path: Path, tmp_path: Path):
    return tiny_imagenet_source(path, data_dir=tmp_path / "tfds").open()


def test_every_picture_of_the_zip_is_read(tmp_path):
    opened = open_zip(write_tiny_imagenet_zip(tmp_path / "tiny.zip"), tmp_path)
    assert opened.name == "tiny_imagenet"
    assert opened.wnids == ("n00000000", "n00000001", "n00000002")
    assert opened.names == ("thing 0", "thing 1", "thing 2")
    assert opened.license == "ImageNet terms: non-commercial research"
    members = tiny_imagenet_members()
    for split, folder, count in ((opened.train, "train", 12), (opened.validation, "val/images", 6)):
        assert len(split) == count
        pictures = [split[index] for index in range(count)]
        names = [picture.where.split(" ")[-1] for picture in pictures]
        expected = [name for name in members if name.startswith(ROOT + folder) and name.endswith("JPEG")]
        assert sorted(names) == sorted(expected)
        assert [picture.encoded for picture in pictures] == [members[name] for name in names]
    for index in range(12):
        picture = opened.train[index]
        assert opened.wnids[picture.label] in picture.where
    annotations = members[ROOT + "val/val_annotations.txt"].decode()
    for index in range(6):
        picture = opened.validation[index]
        name = picture.where.split("/")[-1]
        assert f"{name}\t{opened.wnids[picture.label]}\t" in annotations


def test_a_zip_is_prepared_once(tmp_path):
    path = write_tiny_imagenet_zip(tmp_path / "tiny.zip")
    first, second = open_zip(path, tmp_path), open_zip(path, tmp_path)
    assert first.names == second.names
    assert first.wnids == second.wnids
    assert first.license == second.license
    assert [first.train[i] for i in range(12)] == [second.train[i] for i in range(12)]


def test_another_zip_is_another_data_set(tmp_path):
    small = tiny_imagenet_source(write_tiny_imagenet_zip(tmp_path / "a.zip", classes=2), data_dir=tmp_path / "tfds")
    large = tiny_imagenet_source(write_tiny_imagenet_zip(tmp_path / "b.zip", classes=4), data_dir=tmp_path / "tfds")
    assert small.key != large.key
    assert len(small.open().names) == 2
    assert len(large.open().names) == 4


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"^data\.archive: .*gone\.zip cannot be read: No such file or directory; check the path$"
    ):
        tiny_imagenet_source(tmp_path / "gone.zip", data_dir=tmp_path)


def test_the_download_has_the_official_size_and_sha256():
    (info,) = (info for url, info in TinyImageNet.url_infos.items() if url == URL)
    assert info.size == 248_100_043
    assert info.checksum == "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"


class Response(io.BytesIO):
    """A response that does not have the official content."""

    status_code, url, headers = 200, URL, {"Content-length": "4"}

    def iter_content(self, chunk_size):
        yield self.read()


def test_a_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("requests.Session.get", lambda *_, **__: Response(b"evil"))
    with pytest.raises(UserError, match=r"tiny_imagenet: .*wrong checksum.*--data\.archive"):
        tiny_imagenet_source(None, data_dir=tmp_path).open()


def test_it_is_not_a_data_set_of_tfds_whether_this_module_is_imported_or_not(tmp_path):
    assert "tiny_imagenet" not in tfds.list_builders(with_community_datasets=False)
    with pytest.raises(UserError, match=r"^tfds:tiny_imagenet: TFDS has no such data set; did you mean"):
        tfds_source("tiny_imagenet", data_dir=tmp_path)


def test_a_failed_download_is_reported_with_the_way_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("requests.Session.get", refuse)
    with pytest.raises(UserError, match=r"tiny_imagenet: .*no route to host.*--data\.archive"):
        tiny_imagenet_source(None, data_dir=tmp_path).open()


def without(*parts: str) -> dict[str, bytes]:
    return {name: content for name, content in tiny_imagenet_members().items() if not any(p in name for p in parts)}


def changed(name: str, content: bytes) -> dict[str, bytes]:
    return tiny_imagenet_members() | {ROOT + name: content}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cat/1.png": b""}, "it has 0 files called wnids.txt instead of one"),
        (changed("old/wnids.txt", b""), "it has 2 files called wnids.txt instead of one"),
        (without("words.txt"), "words.txt is missing"),
        (without("val_annotations.txt"), "val_annotations.txt is missing"),
        (without("train/n00000001"), "class n00000001 is not both in wnids.txt and a folder of train/"),
        (changed("train/n5/images/1.JPEG", b""), "class n5 is not both"),
        (changed("wnids.txt", b"n00000000\nn00000001\nn00000002\nn00000002"), "each once"),
        (changed("wnids.txt", b"n00000000"), "two or more classes"),
        (without("val/images/val_3"), r"names a picture or class that is not there: 'val_3.JPEG\tn"),
        (changed("val/val_annotations.txt", b"val_0.JPEG\tn9\t1"), r"not there: 'val_0.JPEG\tn9"),
        (changed("val/val_annotations.txt", b"val_0.JPEG"), "not there: 'val_0.JPEG'"),
        (changed("val/images/val_9.JPEG", b""), "val_annotations.txt does not name val_9.JPEG"),
        (without("val/images") | {ROOT + "val/val_annotations.txt": b""}, "there are no validation pictures"),
    ],
)
def test_a_wrong_layout_is_refused(tmp_path, members, message):
    path = write_zip(tmp_path / "tiny.zip", members)
    with pytest.raises(UserError) as caught:
        read_layout(Archive(path))
    assert str(caught.value).startswith(f"{path} does not have the layout of tiny-imagenet-200.zip: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; give the official zip as --data.archive, or class folders as --data.source")
    assert "\n" not in str(caught.value)


def test_errors_pass_through_tfds_unchanged(tmp_path):
    path = write_zip(tmp_path / "tiny.zip", without("words.txt"))
    with pytest.raises(UserError, match=rf"^{path} does not have the layout"):
        open_zip(path, tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"^{path} is neither a folder nor a complete zip"):
        open_zip(path, tmp_path)


def test_a_damaged_member_is_named(tmp_path):
    path = write_tiny_imagenet_zip(tmp_path / "tiny.zip")
    victim = tiny_imagenet_members()[ROOT + "train/n00000001/images/n00000001_2.JPEG"]
    path.write_bytes(path.read_bytes().replace(victim[200:], bytes(len(victim) - 200)))
    with pytest.raises(UserError, match=r"train/n00000001/images/n00000001_2\.JPEG in .*tiny\.zip is damaged"):
        open_zip(path, tmp_path)


FULL_DISK = """
import resource, sys
from pathlib import Path
from jaxcnn.data.sources.tfds import tfds_source
from jaxcnn.data.sources.tiny_imagenet import tiny_imagenet_source
from jaxcnn.errors import UserError
source = tiny_imagenet_source(Path(sys.argv[1]), data_dir=Path(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # larger writes fail as on a full disk
try:
    source.open()
except UserError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_reported(tmp_path):
    path = write_tiny_imagenet_zip(tmp_path / "tiny.zip")
    command = [sys.executable, "-c", FULL_DISK, str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith(f"the disk is full: tiny_imagenet is prepared in {tmp_path}"), done.stderr
    assert done.stdout.endswith("; make room or choose another --data.cache_dir\n")
    assert not [*tmp_path.rglob("*incomplete*")]


def test_missing_pictures_test_pictures_and_another_root_are_accepted(tmp_path):
    members = tiny_imagenet_members(validation=1)
    members |= {ROOT + "test/images/test_0.JPEG": encode(make_picture(0, seed=0)), ROOT + "train/.DS_Store": b""}
    members |= {ROOT + f"{folder}/images/.DS_Store": b"" for folder in ("train/n00000000", "val")}
    path = write_zip(tmp_path / "tiny.zip", {name.removeprefix(ROOT): content for name, content in members.items()})
    layout = read_layout(Archive(path))
    assert len(layout.train) == 12
    assert len(layout.validation) == 3


def test_gray_pictures_are_not_encoded_again(tmp_path):
    gray = encode(Image.fromarray(np.full((64, 64), 90, np.uint8)), "JPEG")
    path = write_zip(tmp_path / "tiny.zip", changed("train/n00000000/images/n00000000_0.JPEG", gray))
    opened = open_zip(path, tmp_path)
    assert gray in [opened.train[index].encoded for index in range(12)]


def test_the_first_synonym_is_the_name():
    words = ["n1\tdog, domestic dog, Canis familiaris", "n2\tcat", "n9\tthing"]
    assert readable_names(["n1", "n2", "n3"], words) == ["dog", "cat", "n3"]


def test_classes_with_the_same_first_synonym_get_their_ids():
    words = ["n1\tcrane, bird", "n2\tcrane", "n3\tcat"]
    assert readable_names(["n1", "n2", "n3"], words) == ["crane (n1)", "crane (n2)", "cat"]


@given(st.lists(st.lists(st.sampled_from(["cat", "dog", "crane"]), min_size=1, max_size=3), max_size=6))
def test_names_are_always_unique(synonyms):
    wnids = [f"n{index}" for index in range(len(synonyms))]
    names = readable_names(wnids, [f"{w}\t{', '.join(words)}" for w, words in zip(wnids, synonyms, strict=True)])
    assert len(set(names)) == len(wnids)


def test_the_builder_works_with_the_api_of_tfds(tmp_path):
    builder = TinyImageNet(archive=write_tiny_imagenet_zip(tmp_path / "tiny.zip"), data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record")
    assert isinstance(builder, tfds.core.GeneratorBasedBuilder)
    assert builder.info.splits["train"].num_examples == 12
    example = builder.as_data_source("train")[0]
    assert example["image"].shape == (64, 64, 3)
