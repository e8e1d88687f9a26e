"""Data sets of TFDS, prepared by their own code from small archives in the official layouts.

The archives are put where TFDS keeps its downloads, under the official checksums.
"""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
import tensorflow_datasets as tfds
from pictures import encode, make_picture
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.download import checksums, resource
from tensorflow_datasets.image_classification import cats_vs_dogs, mnist

from jaxcnn.data.sources.tfds import tfds_source

GRAY = np.stack([np.asarray(make_picture(label, seed=0, size=28).convert("L")) for label in range(8)])
COLOUR = np.stack([np.asarray(make_picture(label, seed=0, size=32)) for label in range(8)])


def place(data_dir: Path, name: str, downloads: Mapping[str, bytes]) -> None:
    """Writes the content of each address to the place where TFDS looks before it downloads."""
    builder = tfds.builder(name, data_dir=data_dir)
    known = {**checksums.get_all_url_infos(), **builder.url_infos}
    for url, content in downloads.items():
        path = data_dir / "downloads" / builder.name / resource.get_dl_fname(url, known[url].checksum)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        record = {
            "urls": [url],
            "dataset_names": [builder.name],
            "original_fname": PurePosixPath(urlsplit(url).path).name,
        }
        path.with_suffix(f"{path.suffix}.INFO").write_text(json.dumps(record))


def tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def open_set(name: str, tmp_path: Path, downloads: Mapping[str, bytes]):
    place(tmp_path, name, downloads)
    return tfds_source(name, data_dir=tmp_path).open()


def decoded(pictures) -> list[tuple[int, np.ndarray]]:
    """Returns labels and pixels, in the order of the labels."""
    in_order = sorted((pictures[index] for index in range(len(pictures))), key=lambda picture: picture.label)
    return [(picture.label, np.asarray(Image.open(io.BytesIO(picture.encoded)))) for picture in in_order]


def test_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 8)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 2)
    at = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    opened = open_set(
        "mnist",
        tmp_path,
        {
            f"{at}train-images-idx3-ubyte.gz": gzip.compress(bytes(16) + GRAY.tobytes()),
            f"{at}train-labels-idx1-ubyte.gz": gzip.compress(bytes(8) + bytes(range(8))),
            f"{at}t10k-images-idx3-ubyte.gz": gzip.compress(bytes(16) + GRAY[:2].tobytes()),
            f"{at}t10k-labels-idx1-ubyte.gz": gzip.compress(bytes(8) + bytes(range(2))),
        },
    )
    assert opened.names == tuple("0123456789")
    for pictures, count in ((opened.train, 8), (opened.validation, 2)):
        pairs = decoded(pictures)
        assert [label for label, _ in pairs] == list(range(count))
        assert np.array_equal([pixels for _, pixels in pairs], GRAY[:count])


def test_cifar10(tmp_path):
    records = [bytes([label]) + pixels.transpose(2, 0, 1).tobytes() for label, pixels in enumerate(COLOUR)]
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    members = {f"data_batch_{number}.bin": records[number - 1] for number in range(1, 6)}
    members |= {"test_batch.bin": b"".join(records[5:]), "batches.meta.txt": "\n".join([*names, ""]).encode()}
    archive = tar({f"cifar-10-batches-bin/{name}": content for name, content in members.items()})
    opened = open_set("cifar10", tmp_path, {"https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": archive})
    assert opened.names == tuple(names)
    train, validation = decoded(opened.train), decoded(opened.validation)
    assert [label for label, _ in train + validation] == list(range(8))
    assert np.array_equal([pixels for _, pixels in train + validation], COLOUR)
    assert opened.train[0].where.startswith("tfds:cifar10 train train_0000")


def test_tf_flowers(tmp_path):
    jpegs = [encode(make_picture(label, seed=0), "JPEG") for label in range(5)]
    names = ("dandelion", "daisy", "tulips", "sunflowers", "roses")
    archive = tar({f"flower_photos/{name}/1.jpg": jpeg for name, jpeg in zip(names, jpegs, strict=True)})
    url = "http://download.tensorflow.org/example_images/flower_photos.tgz"
    opened = open_set("tf_flowers", tmp_path, {url: archive})
    assert opened.names == names
    assert {opened.train[i].label: opened.train[i].encoded for i in range(5)} == dict(enumerate(jpegs))
    assert len(opened.validation) == 0


def test_eurosat(tmp_path):
    names = ("AnnualCrop", "Forest", "River")
    jpegs = [encode(make_picture(label, seed=0, size=64), "JPEG") for label in range(3)]
    members = {f"2750/{name}/{name}_1.jpg": jpeg for name, jpeg in zip(names, jpegs, strict=True)}
    opened = open_set("eurosat", tmp_path, {"http://madm.dfki.de/files/sentinel/EuroSAT.zip": zipped(members)})
    read = {opened.names[opened.train[i].label]: opened.train[i].encoded for i in range(3)}
    assert read == dict(zip(names, jpegs, strict=True))


def test_cats_vs_dogs(tmp_path, monkeypatch):
    monkeypatch.setattr(cats_vs_dogs, "_NUM_CORRUPT_IMAGES", 1)
    pictures = [make_picture(label, seed=0, size=64) for label in range(2)]
    members = {
        "PetImages/Cat/0.jpg": encode(pictures[0], "JPEG"),
        "PetImages/Dog/0.jpg": encode(pictures[1], "JPEG"),
        "PetImages/Dog/1.jpg": b"no picture",
        "readme[1].txt": b"",
    }
    at = "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/"
    opened = open_set("cats_vs_dogs", tmp_path, {f"{at}kagglecatsanddogs_5340.zip": zipped(members)})
    pairs = decoded(opened.train)
    assert [label for label, _ in pairs] == [0, 1]
    for (_, pixels), picture in zip(pairs, pictures, strict=True):  # decoded and encoded once more
        assert np.abs(pixels.astype(int) - np.asarray(picture)).mean() < 12


def test_caltech101(tmp_path):
    jpegs = {
        f"{name}/image_{index:04}.jpg": encode(make_picture(label, seed=index), "JPEG")
        for label, name in enumerate(("accordion", "airplanes"))
        for index in range(32)
    }
    inner = tar({f"101_ObjectCategories/{name}": jpeg for name, jpeg in jpegs.items()})
    archive = zipped({"caltech-101/101_ObjectCategories.tar.gz": inner})
    url = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1"
    opened = open_set("caltech101", tmp_path, {url: archive})
    assert (len(opened.train), len(opened.validation)) == (60, 4)
    read = [split[index].encoded for split in (opened.train, opened.validation) for index in range(len(split))]
    assert sorted(read) == sorted(jpegs.values())


def test_a_data_set_too_large_for_memory_is_sorted_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    jpegs = [encode(make_picture(0, seed=index, size=8), "JPEG") for index in range(300)]
    archive = tar({f"flower_photos/daisy/{index}.jpg": jpeg for index, jpeg in enumerate(jpegs)})
    url = "http://download.tensorflow.org/example_images/flower_photos.tgz"
    opened = open_set("tf_flowers", tmp_path, {url: archive})
    assert sorted(opened.train[i].encoded for i in range(300)) == sorted(jpegs)
