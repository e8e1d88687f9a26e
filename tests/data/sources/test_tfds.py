import io
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from filelock import FileLock
from pictures import encode, make_picture, write_tiny_imagenet_zip
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

from jaxcnn.data.cache import load_cached
from jaxcnn.data.decoding import decode
from jaxcnn.data.encoded_cache import load_encoded
from jaxcnn.data.sources.tfds import tfds_source
from jaxcnn.errors import UserError


class Pictured(tfds.core.GeneratorBasedBuilder):
    """A small data set; every subclass changes one thing, and TFDS finds it by the name of the class."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
    }
    KEYS = ("image", "label")
    SPLITS: ClassVar = {"train": 6, "test": 2}

    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=self.KEYS, license="free")

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, count) for split, count in self.SPLITS.items()}

    def _generate_examples(self, split, count):
        for index in range(count):
            yield f"{split}{index}", self.example(index)

    def example(self, index):
        return {"image": file(index), "label": index % 2}


def make_encoded(index: int) -> bytes:
    return encode(make_picture(index % 2, seed=index, size=12))


def file(index: int) -> io.BytesIO:
    return io.BytesIO(make_encoded(index))


class PicturesWithTest(Pictured):
    pass


class PicturesWithValidation(Pictured):
    SPLITS: ClassVar = {"train": 6, "validation": 3, "test": 2}


class PicturesWithTrainOnly(Pictured):
    SPLITS: ClassVar = {"train": 6}


class PicturesWithoutTrain(Pictured):
    SPLITS: ClassVar = {"test": 2}


class PicturesOtherKeys(Pictured):
    FEATURES: ClassVar = {
        "label": tfds.features.Text(),
        "photo": tfds.features.Image(shape=(None, None, 3)),
        "kind": tfds.features.ClassLabel(num_classes=2),
    }
    KEYS = ("photo", "kind")

    def example(self, index):
        return {"label": "x", "photo": file(index), "kind": index % 2}


class PicturesNoKeys(Pictured):
    KEYS = None


class PicturesThreeKeys(Pictured):
    FEATURES: ClassVar = Pictured.FEATURES | {"file": tfds.features.Text()}
    KEYS = ("image", "label", "file")

    def example(self, index):
        return super().example(index) | {"file": "x"}


class PicturesUnlabelledTest(Pictured):
    def _generate_examples(self, split, count):
        for index in range(count):
            yield f"{split}{index}", self.example(index) | ({"label": -1} if split == "test" else {})


class TextsOnly(Pictured):
    FEATURES: ClassVar = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    KEYS = ("text", "label")


class PicturesWithBoxes(Pictured):
    FEATURES: ClassVar = {
        "image": tfds.features.Image(),
        "label": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2)),
    }


class PicturesAsFloats(Pictured):
    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
        "label": tfds.features.ClassLabel(num_classes=2),
    }


class PicturesFromArrays(Pictured):
    def example(self, index):
        return {"image": np.asarray(make_picture(index % 2, seed=index)), "label": index % 2}


class PicturesFromTensors(Pictured):
    def example(self, index):
        return {"image": tensorflow.image.resize(np.zeros((4, 4, 3), np.uint8), (8, 8)), "label": 0}


class PicturesByHand(Pictured):
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Fetch it\nyourself."

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(str(dl_manager.manual_dir), 3)}


class PicturesBroken(Pictured):
    def example(self, index):
        raise KeyError("two\nlines")


def by_name(name: str, tmp_path):
    return tfds_source(name, data_dir=tmp_path / "tfds")


def labels(pictures) -> list[int]:
    return [pictures[index].label for index in range(len(pictures))]


def test_the_test_split_validates_if_there_is_no_other(tmp_path):
    source = by_name("pictures_with_test", tmp_path)
    assert source.key == "tfds-pictures_with_test-1.0.0"
    opened = source.open()
    assert opened.name == "pictures_with_test"
    assert opened.names == ("a", "b")
    assert opened.wnids == ()
    assert opened.license == "free"
    assert sorted(labels(opened.train)) == [0, 0, 0, 1, 1, 1]
    assert sorted(labels(opened.validation)) == [0, 1]
    by_bytes = {make_encoded(index): index % 2 for index in range(6)}
    assert {opened.train[i].encoded: opened.train[i].label for i in range(6)} == by_bytes
    assert opened.train[5].where == "tfds:pictures_with_test train 5"


def test_the_validation_split_comes_first(tmp_path):
    assert len(by_name("pictures_with_validation", tmp_path).open().validation) == 3


def test_a_data_set_without_either_has_no_validation_pictures(tmp_path):
    assert len(by_name("pictures_with_train_only", tmp_path).open().validation) == 0


def test_a_data_set_without_training_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="tfds:pictures_without_train has no split 'train', only test"):
        by_name("pictures_without_train", tmp_path).open()


def test_a_data_set_is_prepared_once(tmp_path, monkeypatch):
    by_name("pictures_with_test", tmp_path).open()
    monkeypatch.setattr(PicturesWithTest, "_generate_examples", None)
    assert len(by_name("pictures_with_test", tmp_path).open().train) == 6


def test_a_data_set_that_another_process_has_prepared_meanwhile_is_read(tmp_path):
    first, second = (by_name("pictures_with_test", tmp_path) for _ in range(2))
    assert [len(source.open().train) for source in (first, second)] == [6, 6]


def test_what_a_killed_preparation_has_left_is_removed_once_no_other_is_in_progress(tmp_path):
    source, folder = by_name("pictures_with_test", tmp_path), tmp_path / "tfds" / "pictures_with_test"
    left, other = (folder / f"incomplete.AB12CD_{version}" for version in ("1.0.0", "2.0.0"))
    for path in (left, other):
        (path / "part").mkdir(parents=True)
    preparing = FileLock(tmp_path / "tfds" / "tfds-pictures_with_test-1.0.0.lock")
    with ThreadPoolExecutor(1) as pool:
        with preparing:
            opening = pool.submit(source.open)
            time.sleep(0.2)
            assert left.exists()
        assert len(opening.result().train) == 6
    assert (left.exists(), other.exists()) == (False, True)


def test_encoded_pictures_are_read_from_the_files_of_tfds(tmp_path):
    source = by_name("pictures_with_validation", tmp_path)
    decoded, encoded = (load(source, size=12, cache_dir=tmp_path / "cache") for load in (load_cached, load_encoded))
    for one, other in ((decoded.train, encoded.train), (decoded.validation, encoded.validation)):
        assert np.array_equal(one.images[:], other.images[:])
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.facts, other.facts)
    assert not list((tmp_path / "cache").rglob("*.array_record"))
    # A record that breaks later is named.
    encoded = load_encoded(source, size=12, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "tfds").rglob("*-train.array_record*")
    content = path.read_bytes()
    place = content.index(encoded.train.images.pictures[4].encoded[20:60])
    path.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
    with pytest.raises(UserError, match=r"^tfds:pictures_with_validation train 4 cannot be read \(.*; remove the data"):
        load_encoded(source, size=12, cache_dir=tmp_path / "cache").train.images[:]


def test_supervised_keys_name_the_features(tmp_path):
    opened = by_name("pictures_other_keys", tmp_path).open()
    assert opened.names == ("0", "1")
    assert sorted(labels(opened.train)) == [0, 0, 0, 1, 1, 1]


def test_a_third_supervised_key_is_ignored(tmp_path):
    assert sorted(labels(by_name("pictures_three_keys", tmp_path).open().train)) == [0, 0, 0, 1, 1, 1]


def test_the_usual_names_are_used_without_supervised_keys(tmp_path):
    assert len(by_name("pictures_no_keys", tmp_path).open().train) == 6


def test_pictures_without_labels_have_negative_ones(tmp_path):
    assert labels(by_name("pictures_unlabelled_test", tmp_path).open().validation) == [-1, -1]


@pytest.mark.parametrize("name", ["texts_only", "pictures_with_boxes", "pictures_as_floats"])
def test_other_kinds_of_data_sets_are_refused(tmp_path, name):
    with pytest.raises(
        UserError, match=rf"^tfds:{name} is not an image classification data set: its features are \w+, label"
    ):
        by_name(name, tmp_path)


@pytest.mark.run
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", r"^tfds:mnits: TFDS has no such data set; did you mean mnist"),
        ("qqqqqqqqqqqq", r"no such data set; see https://"),
        ("mnist:9.9.9", r"cannot be loaded at version 9\.9\.9, only: [0-9.]+; see https://.* for names and versions$"),
        ("mnist/nope", r"BuilderConfig nope not found"),
        ("", r"^data\.source is 'tfds:' without the name of a data set; give tfds:NAME, see https://"),
        ("a b", r"^tfds:a b: "),
        (
            "huggingface:mnist",
            r"^tfds:huggingface:mnist is on Hugging Face's hub, which is not read; download it into a folder",
        ),
    ],
)
def test_an_unknown_name_is_refused_in_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as caught:
        by_name(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_arrays_are_stored_as_png(tmp_path):
    train = by_name("pictures_from_arrays", tmp_path).open().train
    read = {decode(train[i].encoded, size=16, where="").tobytes(): train[i].label for i in range(6)}
    assert read == {make_picture(index % 2, seed=index).tobytes(): index % 2 for index in range(6)}


def test_a_data_set_that_needs_more_of_tensorflow_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match=r"its code needs TensorFlow; prepare it elsewhere with .* and copy it to .*"):
        by_name("pictures_from_tensors", tmp_path).open()
    assert capsys.readouterr().out == ""
    assert len(by_name("pictures_from_arrays", tmp_path).open().train) == 6


@pytest.mark.parametrize(
    ("name", "message"), [("pictures_by_hand", "Fetch it yourself"), ("pictures_broken", "two lines")]
)
def test_an_error_of_a_builder_is_reported_in_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=rf"^tfds:{name}: .*") as caught:
        by_name(name, tmp_path).open()
    assert message.split(" ")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_imports_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from jaxcnn.data.sources.tiny_imagenet import tiny_imagenet_source\n"
        "from pathlib import Path\n"
        "opened = tiny_imagenet_source(Path(sys.argv[1]), data_dir=Path(sys.argv[2])).open()\n"
        "print(len(opened.train), 'tensorflow' in sys.modules)\n"
    )
    path = write_tiny_imagenet_zip(tmp_path / "tiny.zip")
    process = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert process.stdout == "12 False\n", process.stderr


def test_a_download_is_tried_a_few_times_and_tfds_keeps_its_own_number(tmp_path, monkeypatch):
    tried = []

    def download(*_, **__):
        tried.append(downloader.MAX_RETRIES)
        raise OSError("no route to host")

    before = downloader.MAX_RETRIES
    monkeypatch.setattr(PicturesWithTest, "download_and_prepare", download)
    with pytest.raises(UserError, match=r"^tfds:pictures_with_test: no route to host; try again, or give a folder"):
        by_name("pictures_with_test", tmp_path).open()
    assert tried == [3]
    assert downloader.MAX_RETRIES == before != 3


@pytest.mark.run
def test_a_download_without_a_network_is_one_line(tmp_path):
    environment = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9"}  # Nothing listens there
    command = [sys.executable, "-m", "jaxcnn.train", "--data.source", "tfds:mnist", "--data.cache_dir", "cache"]
    process = subprocess.run(
        command,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    # On a busy machine it says first what it is doing, and how long that took.
    *stages, line = process.stderr.splitlines()
    assert all(re.fullmatch(r".*( \.\.\.|: \d+ s)", stage) for stage in stages), stages
    assert line.startswith("python -m jaxcnn.train: tfds:mnist: ")
    assert line.endswith("; try again, or give a folder or zip of class folders as --data.source")


def test_a_missing_array_record_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(UserError, match=r"tfds:pictures_with_test cannot be read here: it needs .* not for Windows"):
        tfds_source("pictures_with_test", data_dir=tmp_path).open()
