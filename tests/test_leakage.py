"""Pictures that a model was trained on are never validation pictures, wherever they are stored."""

import dataclasses
import os
import shutil

import pytest
from pictures import make_picture, write_class_folders, zip_folder

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.leakage import check_no_leakage, describe_overlap, is_same_data, is_same_source


@pytest.fixture
def trained_on(tmp_path):
    """Settings that hold out half of the pictures, with another seed than the default."""
    source = write_class_folders(tmp_path / "photos", count=8)
    return DataConfig(
        source=str(source), cache_dir=str(tmp_path / "cache"), image_size=16, validation_fraction=0.5, split_seed=3
    )


@pytest.fixture
def fingerprint(trained_on):
    return data.load(trained_on).fingerprint()


def check(config, *, trained_on, fingerprint):
    check_no_leakage(data.load(config), config, trained_on=trained_on, fingerprint=fingerprint)


@pytest.mark.parametrize(
    ("wnids", "datasets", "warned"),
    [
        (("n01443537", "n01440764"), ("ImageNet-1k",), True),
        (("n01443537",), ("ImageNet-1k", "pets"), True),
        (("n01443537", "n99999999"), ("ImageNet-1k",), False),
        ((), ("ImageNet-1k",), False),
        (("n01443537",), ("pets",), False),
    ],
)
def test_pictures_of_imagenet_have_probably_been_seen(trained_on, wnids, datasets, warned):
    dataset = dataclasses.replace(data.load(trained_on), name="goldfish", wnids=wnids)
    warning = describe_overlap(dataset, trained_on=datasets)
    assert (warning is not None) is warned
    if warned:
        assert warning.startswith(
            "the initial weights have probably seen the validation pictures of goldfish, which come"
        )


def add_picture(folder):
    make_picture(0, seed=99).save(folder / "cat" / "99.png")


def test_the_split_it_was_trained_with_is_accepted(trained_on, fingerprint):
    check(trained_on, trained_on=trained_on, fingerprint=fingerprint)
    check(trained_on, trained_on=trained_on, fingerprint=None)


@pytest.mark.parametrize("change", [{"validation_fraction": None}, {"split_seed": 0}])
@pytest.mark.parametrize("place", ["same", "symlink", "relative", "copy", "zip"])
def test_another_split_is_refused_wherever_the_pictures_lie(
    tmp_path, monkeypatch, trained_on, fingerprint, change, place
):
    photos = tmp_path / "photos"
    match place:
        case "symlink":
            (tmp_path / "link").symlink_to(photos)
            source = tmp_path / "link"
        case "relative":
            monkeypatch.chdir(photos)
            source = os.path.join("..", "photos", "")
        case "copy":
            source = shutil.copytree(photos, tmp_path / "copy")
        case "zip":
            source = zip_folder(photos, tmp_path / "photos.zip")
        case _:
            source = photos
    config = dataclasses.replace(trained_on, source=str(source))
    check(config, trained_on=trained_on, fingerprint=fingerprint)
    with pytest.raises(
        UserError, match=r"give --data\.validation_fraction 0\.5 --data\.split_seed 3, as in its training"
    ):
        check(dataclasses.replace(config, **change), trained_on=trained_on, fingerprint=fingerprint)


@pytest.mark.parametrize("place", ["photos", "link"])
def test_an_added_picture_is_refused_as_it_changes_what_is_held_out(tmp_path, trained_on, fingerprint, place):
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    add_picture(tmp_path / "photos")
    config = dataclasses.replace(trained_on, source=str(tmp_path / place))
    with pytest.raises(UserError, match=r"the pictures of .* have changed since the model was trained, so that some"):
        check(config, trained_on=trained_on, fingerprint=fingerprint)
    check(config, trained_on=trained_on, fingerprint=None)  # Without a fingerprint nobody can know.


@pytest.mark.parametrize("size", [16, 24])
def test_other_pictures_may_be_split_in_any_way(tmp_path, trained_on, fingerprint, size):
    others = write_class_folders(tmp_path / "others", count=8, seed=50)
    config = dataclasses.replace(
        trained_on, source=str(others), validation_fraction=None, split_seed=5, image_size=size
    )
    check(config, trained_on=trained_on, fingerprint=fingerprint)


def test_a_copy_is_recognised_in_another_size(tmp_path, trained_on, fingerprint):
    copy = shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    config = dataclasses.replace(trained_on, source=str(copy), image_size=24)
    check(config, trained_on=trained_on, fingerprint=fingerprint)
    with pytest.raises(
        UserError, match=r"give --data\.validation_fraction 0\.5 --data\.split_seed 3, as in its training"
    ):
        check(dataclasses.replace(config, split_seed=0), trained_on=trained_on, fingerprint=fingerprint)


@pytest.mark.parametrize("decoder", [0, 1])
def test_pixels_of_another_decoder_are_not_compared(trained_on, fingerprint, decoder):
    before = dataclasses.replace(fingerprint, decoder=decoder, pixels="others")
    check(trained_on, trained_on=trained_on, fingerprint=before)
    with pytest.raises(UserError, match="have changed since the model was trained"):
        check(trained_on, trained_on=trained_on, fingerprint=dataclasses.replace(before, labels="others"))
    with pytest.raises(UserError, match="have changed since the model was trained"):
        check(trained_on, trained_on=trained_on, fingerprint=dataclasses.replace(fingerprint, pixels="others"))


def test_a_validation_split_of_the_source_may_change(tmp_path):
    for split in ("train", "val"):
        write_class_folders(tmp_path / "pictures" / split, seed=len(split))
    config = DataConfig(source=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"), image_size=16)
    fingerprint = data.load(config).fingerprint()
    add_picture(tmp_path / "pictures" / "val")
    check(config, trained_on=config, fingerprint=fingerprint)
    with pytest.raises(
        UserError, match=r"give --data\.validation_fraction None --data\.split_seed 0, as in its training"
    ):
        check(dataclasses.replace(config, validation_fraction=0.5), trained_on=config, fingerprint=fingerprint)


def test_data_is_the_same_with_the_same_source_and_split():
    run = DataConfig(source="digits", validation_fraction=0.5, split_seed=3)
    assert is_same_data(dataclasses.replace(run, image_size=99), run)
    for change in ({"source": "photos"}, {"validation_fraction": None}, {"split_seed": 4}):
        assert not is_same_data(dataclasses.replace(run, **change), run)


def test_a_name_is_not_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_same_source("digits", "digits")
    assert not is_same_source("digits", "./digits")
    assert not is_same_source("./digits", "digits")
    assert not is_same_source("tfds:mnist", os.path.abspath("tfds:mnist"))
    assert is_same_source("./photos", str(tmp_path / "photos"))
    assert is_same_source("~/photos", os.path.expanduser("~/photos"))
    assert not is_same_source("a\0b", "c\0d")
