import contextlib
import dataclasses
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import (
    encode,
    make_picture,
    tiny_imagenet_members,
    write_class_folders,
    write_tiny_imagenet_zip,
    write_zip,
    zip_folder,
)
from PIL import Image

import jaxcnn.data
from jaxcnn.config import DataConfig
from jaxcnn.data import load
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.pictures import Picture
from jaxcnn.data.source import Source
from jaxcnn.errors import UserError


@pytest.fixture
def config(tmp_path):
    return DataConfig(cache_dir=str(tmp_path / "cache"), image_size=8)


def with_source(config, source, **settings):
    return dataclasses.replace(config, source=str(source), **settings)


def test_the_public_names():
    assert sorted(jaxcnn.data.__all__) == [
        "Batch", "Dataset", "EvalBatch", "Fingerprint", "Resize", "Split", "check_outside_pictures", "check_source",
        "epoch_order", "eval_batches", "is_named", "load", "steps_per_epoch", "train_batches",
    ]  # fmt: skip
    assert all(hasattr(jaxcnn.data, name) for name in jaxcnn.data.__all__)


def test_the_digits_hold_out_a_tenth_of_every_class(config):
    digits = load(config)
    assert digits.name == "digits"
    assert digits.train.images.shape == (1797 - len(digits.validation), 8, 8, 3)
    whole = np.bincount(np.concatenate([digits.train.labels, digits.validation.labels]))
    assert np.bincount(digits.validation.labels).tolist() == [round(count * 0.1) for count in whole.tolist()]
    assert digits.train.images[0].max() > 200


def test_pictures_and_labels_of_a_folder_belong_together(config, tmp_path):
    pets = write_class_folders(tmp_path / "pets", ("cat", "cow", "dog"), count=5, size=8)
    dataset = load(with_source(config, pets, validation_fraction=0.4))
    assert dataset.names == ("cat", "cow", "dog")
    known = {
        np.asarray(Image.open(pets / name / f"{index}.png")).tobytes(): label
        for label, name in enumerate(dataset.names)
        for index in range(5)
    }
    seen = []
    for split, count in ((dataset.train, 9), (dataset.validation, 6)):
        assert len(split) == count
        for index in range(count):
            content = split.images[index].tobytes()
            assert known[content] == split.labels[index]
            seen.append(content)
    assert sorted(seen) == sorted(known)


def test_a_folder_and_its_zip_give_the_same_data_set(config, tmp_path):
    pets = write_class_folders(tmp_path / "pets")
    folder, archive = (
        load(with_source(config, pets)),
        load(with_source(config, zip_folder(pets, tmp_path / "pets.zip"))),
    )
    assert folder.names == archive.names
    for split in ("train", "validation"):
        assert np.array_equal(getattr(folder, split).images[:], getattr(archive, split).images[:])
        assert np.array_equal(getattr(folder, split).labels, getattr(archive, split).labels)


def test_a_changed_folder_is_decoded_again(config, tmp_path):
    pets = write_class_folders(tmp_path / "pets", size=8)
    before = load(with_source(config, pets))
    (pets / "dog" / "new.png").write_bytes(encode(make_picture(1, seed=99, size=8)))
    after = load(with_source(config, pets))
    assert len(after.train) + len(after.validation) == len(before.train) + len(before.validation) + 1


def test_split_settings_do_not_decode_again(config, tmp_path, monkeypatch):
    pets = write_class_folders(tmp_path / "pets", count=20)
    first = load(with_source(config, pets))
    monkeypatch.setattr("jaxcnn.data.cache.decode_file", None)
    for settings in ({"split_seed": 1}, {"validation_fraction": 0.5}):
        other = load(with_source(config, pets, **settings))
        assert not np.array_equal(first.validation.images[:], other.validation.images[:])
    assert np.array_equal(load(with_source(config, pets)).validation.images[:], first.validation.images[:])


def test_tiny_imagenet_keeps_its_own_validation_pictures(config, tmp_path):
    archive = write_tiny_imagenet_zip(tmp_path / "tiny.zip")
    tiny = load(with_source(config, "tiny_imagenet", archive=str(archive)))
    assert tiny.name == "tiny_imagenet"
    assert len(tiny.train) == 12
    assert len(tiny.validation) == 6
    assert len(tiny.wnids) == len(tiny.names) == 3


def test_a_validation_fraction_replaces_the_validation_pictures_of_a_source(config, tmp_path):
    archive = write_tiny_imagenet_zip(tmp_path / "tiny.zip")
    own = load(with_source(config, "tiny_imagenet", archive=str(archive)))
    tuned = load(with_source(config, "tiny_imagenet", archive=str(archive), validation_fraction=0.25))
    assert np.bincount(tuned.train.labels).tolist() == [3, 3, 3]
    parts = [load(with_source(config, "tiny_imagenet", archive=str(archive)), hold_out=False)]
    parts += [
        load(with_source(config, "tiny_imagenet", archive=str(archive), validation_fraction=0.25), hold_out=False)
    ]
    assert [(len(dataset.train), len(dataset.validation)) for dataset in parts] == [(12, 6), (12, 0)]
    assert np.bincount(tuned.validation.labels).tolist() == [1, 1, 1]
    trained = {image.tobytes() for image in own.train.images}
    assert {image.tobytes() for image in tuned.validation.images[:]} < trained


def test_a_file_that_is_not_a_picture_is_named(config, tmp_path, capsys):
    pets = write_class_folders(tmp_path / "pets")
    (pets / "dog" / "notes.txt").write_text("not a picture")
    load(with_source(config, pets))
    assert "pets: 1 file is passed over as no picture: dog/notes.txt\n" in capsys.readouterr().err
    (pets / "dog" / "notes.png").write_text("not a picture")
    with pytest.raises(UserError, match=rf"^dog/notes\.png in {pets} is not a picture that can be read"):
        load(with_source(config, pets))


def test_a_truncated_picture_of_tiny_imagenet_is_named(config, tmp_path):
    name = "tiny-imagenet-200/train/n00000002/images/n00000002_1.JPEG"
    members = tiny_imagenet_members()
    members[name] = members[name][:400]
    path = write_zip(tmp_path / "tiny.zip", members)
    with pytest.raises(UserError, match=rf"{name} is not a picture that can be read"):
        load(with_source(config, "tiny_imagenet", archive=str(path)))


def test_a_class_of_one_picture_is_refused_if_pictures_are_held_out(config, tmp_path):
    pets = write_class_folders(tmp_path / "pets", count=2)
    (pets / "dog" / "1.png").unlink()
    with pytest.raises(
        UserError, match="class 'dog' of pets has 1 training picture, but needs one to train on and one to hold out"
    ):
        load(with_source(config, pets))
    everything = load(with_source(config, pets), hold_out=False)
    assert (len(everything.train), len(everything.validation)) == (sum(1 for _ in pets.rglob("*.png")), 0)


@pytest.mark.parametrize("source", ["", "nowhere", "tfds:no_such_set"])
def test_an_unknown_source_is_refused_in_one_line(config, source):
    with pytest.raises(UserError) as caught:
        load(with_source(config, source))
    assert "\n" not in str(caught.value)


def test_unlabelled_validation_pictures_are_refused_unless_others_are_held_out(config, tmp_path, monkeypatch):
    pictures = [Picture(where="x", encoded=encode(make_picture(0, seed=i)), label=i % 2) for i in range(4)]
    unlabelled = [dataclasses.replace(picture, label=-1) for picture in pictures]
    opened = EncodedDataset(name="set", names=("a", "b"), license="free", train=pictures, validation=unlabelled)
    monkeypatch.setattr("jaxcnn.data.loading.find_source", lambda _: Source(key="set", open=lambda: opened))
    with pytest.raises(UserError, match=r"validation pictures of set have no label; set --data\.validation_fraction"):
        load(config)
    assert len(load(dataclasses.replace(config, validation_fraction=0.5)).validation) == 2


def test_unlabelled_training_pictures_are_refused(config, monkeypatch):
    pictures = [Picture(where="x", encoded=encode(make_picture(0, seed=i)), label=i // 2 - 1) for i in range(6)]
    opened = EncodedDataset(name="set", names=("a", "b"), license="free", train=pictures, validation=pictures[2:])
    monkeypatch.setattr("jaxcnn.data.loading.find_source", lambda _: Source(key="set", open=lambda: opened))
    for fraction in (None, 0.5):
        with pytest.raises(
            UserError, match=r"some training pictures of set have no label; choose another --data\.source"
        ):
            load(dataclasses.replace(config, validation_fraction=fraction))


def test_runs_that_start_at_once_open_a_source_in_turns(config, monkeypatch):
    """Opening it may download it into one folder."""
    together, both = [], threading.Barrier(2)

    def open_source():
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.3)
            together.append(True)
        pictures = [Picture(where=str(i), encoded=encode(make_picture(0, seed=i, size=8)), label=0) for i in range(2)]
        return EncodedDataset(name="set", names=("a",), license="free", train=pictures, validation=())

    monkeypatch.setattr(jaxcnn.data.loading, "find_source", lambda _: Source(key="some", open=open_source))
    with ThreadPoolExecutor(2) as pool:
        assert [len(found.train) for found in pool.map(load, (config, config))] == [1, 1]
    assert not together


def test_auto_measures_the_disk_without_what_a_killed_process_has_left(config, tmp_path, monkeypatch):
    left = tmp_path / "cache" / "digits-8.partial" / "train_images.npy"
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0 if left.exists() else 10**6}))
    assert load(config).store.kind == "decoded"


@pytest.mark.parametrize("store", ["decoded", "encoded"])
def test_near_duplicates_are_looked_for_in_sets_that_are_not_too_large(tmp_path, monkeypatch, store):
    pets = write_class_folders(tmp_path / "pets", count=2, size=40)
    Image.open(pets / "cat" / "0.png").save(pets / "cat" / "again.jpg", quality=90)
    for most, expected in ((5, [True, False, True, False, False]), (4, [False] * 5)):
        monkeypatch.setattr("jaxcnn.data.facts.COMPARED", most)
        config = DataConfig(source=str(pets), cache_dir=str(tmp_path / str(most)), store=store)
        assert (load(config, hold_out=False).train.facts["alike"] >= 0).tolist() == expected


def test_a_tilde_stands_for_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    load(DataConfig(cache_dir="~/cache", image_size=8))
    assert (tmp_path / "cache" / "digits-8").is_dir()


def test_a_cache_inside_the_folder_of_pictures_is_refused_and_not_created(tmp_path):
    source = write_class_folders(tmp_path / "pictures")
    config = DataConfig(source=str(source), cache_dir=str(source / "cache"), image_size=8)
    with pytest.raises(UserError, match=r"data\.cache_dir '.*' lies in data.source .*; give another --data.cache_dir"):
        load(config)
    assert not (source / "cache").exists()
    assert len(load(dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))).names) == 2


def test_a_cache_may_lie_in_a_folder_with_the_name_of_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(DataConfig(source="digits", cache_dir="digits/cache", image_size=8)).name == "digits"


@pytest.mark.parametrize("name", ["source", "cache_dir", "archive"])
def test_an_unknown_home_directory_is_refused(config, name):
    with pytest.raises(UserError, match=rf"^data\.{name} is '~nosuchuser/x', but there is no such home directory"):
        load(
            with_source(config, **{"source": "tiny_imagenet" if name == "archive" else "digits", name: "~nosuchuser/x"})
        )


def test_digits_from_the_cache_import_no_large_library(config):
    load(config)
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'sklearn', 'jax'): sys.modules[name] = None\n"
        "from jaxcnn.config import DataConfig; from jaxcnn.data import load\n"
        f"print(len(load(DataConfig(cache_dir={config.cache_dir!r}, image_size=8)).names))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout == "10\n", process.stderr


GLOBAL_STATE = """
import logging, warnings
import jaxtyping, PIL.Image, rich.progress, tensorflow_datasets as tfds  # which may change some of it
from tensorflow_datasets.core.download import downloader

def state():
    return {
        "filters": list(warnings.filters),
        "logging": (logging.root.level, logging.root.handlers[:], logging.root.manager.disable),
        "retries": downloader.MAX_RETRIES,
        "pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "data sets": tfds.list_builders(with_community_datasets=False),
    }

before = state()
import jaxcnn.data, jaxcnn.data.sources.tiny_imagenet
print([name for name, value in state().items() if value != before[name]])
"""


def test_imports_change_no_global_state_of_other_libraries():
    done = subprocess.run([sys.executable, "-c", GLOBAL_STATE], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
