"""Folders as `datasets.load_dataset("imagefolder")` reads them and as training does. See `clients.py`."""

import json
import shutil

import pytest
from clients import run_in
from pictures import make_picture, write_class_folders

from jaxcnn import data
from jaxcnn.config import DataConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

READ = """
import json, sys
from datasets import load_dataset
found = load_dataset("imagefolder", data_dir=sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps({name: {"names": split.features["label"].names,
                         "counts": [split["label"].count(i) for i in range(split.features["label"].num_classes)],
                         "size": split[0]["image"].size} for name, split in found.items()}))
"""


def read_by_datasets(clients, folder, tmp_path):
    done = run_in(clients, ["-c", READ, str(folder), str(tmp_path / "cache")])
    return json.loads(done.stdout.splitlines()[-1])


def count(split, names):
    return [int((split.labels == label).sum()) for label in range(len(names))]


def load(folder, tmp_path):
    return data.load(DataConfig(source=str(folder), image_size=8, cache_dir=str(tmp_path / "ours")))


def test_classes_without_splits(clients, tmp_path):
    folder = write_class_folders(tmp_path / "pictures", ("zebra", "cat", "Dog 2"), count=5)
    make_picture(0, seed=99).convert("RGB").save(folder / "cat" / "one more.JPG")
    shutil.copy(folder / "cat" / "one more.JPG", folder / "zebra" / "second.webp.jpeg")
    make_picture(0, seed=98).save(folder / "zebra" / "third.webp")
    found, ours = read_by_datasets(clients, folder, tmp_path), load(folder, tmp_path)
    assert list(found) == ["train"]
    assert tuple(found["train"]["names"]) == ours.names
    held_out = zip(count(ours.train, ours.names), count(ours.validation, ours.names), strict=True)
    assert found["train"]["counts"] == [sum(pair) for pair in held_out] == [5, 6, 7]


def test_classes_in_splits(clients, tmp_path):
    folder = tmp_path / "pictures"
    write_class_folders(folder / "train", ("cat", "dog"), count=6)
    write_class_folders(folder / "val", ("cat", "dog"), count=3, seed=50)
    found, ours = read_by_datasets(clients, folder, tmp_path), load(folder, tmp_path)
    assert set(found) == {"train", "validation"}
    for name, split in (("train", ours.train), ("validation", ours.validation)):
        assert tuple(found[name]["names"]) == ours.names
        assert found[name]["counts"] == count(split, ours.names)
    assert found["train"]["counts"] == [6, 6]


def test_a_list_beside_the_classes(clients, tmp_path):
    folder = write_class_folders(tmp_path / "pictures", ("cat", "dog"), count=4)
    (folder / "notes.txt").write_text("not a picture")
    found, ours = read_by_datasets(clients, folder, tmp_path), load(folder, tmp_path)
    assert tuple(found["train"]["names"]) == ours.names
    assert sum(found["train"]["counts"]) == len(ours.train) + len(ours.validation) == 8
