"""Pictures that a model was trained on are not taken for ones that were held out, wherever they lie."""

import dataclasses
import os
import shutil

import pytest
from pictures import make_picture, write_class_folders, zip_folder

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.leakage import check_no_leakage, is_of_run, is_same_source


@pytest.fixture
def trained_on(tmp_path):
    """Pictures of which half were held out by another seed than the default."""
    source = write_class_folders(tmp_path / "photos", count=8)
    return DataConfig(
        source=str(source), cache_dir=str(tmp_path / "cache"), image_size=16, validation_fraction=0.5, split_seed=3
    )


@pytest.fixture
def began(trained_on):
    return data.load(trained_on).fingerprint()


def measure(config, *, trained_on, began):
    check_no_leakage(data.load(config), config, trained_on=trained_on, began=began)


def add_picture(folder):
    make_picture(0, seed=99).save(folder / "cat" / "99.png")


def test_the_split_it_was_trained_with_is_accepted(trained_on, began):
    measure(trained_on, trained_on=trained_on, began=began)
    measure(trained_on, trained_on=trained_on, began=None)


@pytest.mark.parametrize("change", [{"validation_fraction": None}, {"split_seed": 0}])
@pytest.mark.parametrize("place", ["same", "symlink", "relative", "copy", "zip"])
def test_another_split_is_refused_wherever_the_pictures_lie(tmp_path, monkeypatch, trained_on, began, change, place):
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
    measure(config, trained_on=trained_on, began=began)
    with pytest.raises(UserError, match=r"give --data\.validation_fraction 0\.5 --data\.split_seed 3, as then"):
        measure(dataclasses.replace(config, **change), trained_on=trained_on, began=began)


@pytest.mark.parametrize("place", ["photos", "link"])
def test_a_picture_more_changes_what_is_held_out(tmp_path, trained_on, began, place):
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    add_picture(tmp_path / "photos")
    config = dataclasses.replace(trained_on, source=str(tmp_path / place))
    with pytest.raises(UserError, match=r"the pictures of .* have changed since the model was trained, so that some"):
        measure(config, trained_on=trained_on, began=began)
    measure(config, trained_on=trained_on, began=None)  # it cannot be told


@pytest.mark.parametrize("size", [16, 24])
def test_other_pictures_may_be_split_in_any_way(tmp_path, trained_on, began, size):
    others = write_class_folders(tmp_path / "others", count=8, seed=50)
    config = dataclasses.replace(
        trained_on, source=str(others), validation_fraction=None, split_seed=5, image_size=size
    )
    measure(config, trained_on=trained_on, began=began)


def test_a_copy_is_known_in_another_size(tmp_path, trained_on, began):
    copy = shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    config = dataclasses.replace(trained_on, source=str(copy), image_size=24)
    measure(config, trained_on=trained_on, began=began)
    with pytest.raises(UserError, match=r"give --data\.validation_fraction 0\.5 --data\.split_seed 3, as then"):
        measure(dataclasses.replace(config, split_seed=0), trained_on=trained_on, began=began)


@pytest.mark.parametrize("decoder", [0, 1])
def test_pixels_of_another_decoder_are_not_held_against_a_model(trained_on, began, decoder):
    before = dataclasses.replace(began, decoder=decoder, pixels="others")
    measure(trained_on, trained_on=trained_on, began=before)
    with pytest.raises(UserError, match="have changed since the model was trained"):
        measure(trained_on, trained_on=trained_on, began=dataclasses.replace(before, labels="others"))
    with pytest.raises(UserError, match="have changed since the model was trained"):
        measure(trained_on, trained_on=trained_on, began=dataclasses.replace(began, pixels="others"))


def test_validation_pictures_of_their_own_may_change(tmp_path):
    for split in ("train", "val"):
        write_class_folders(tmp_path / "pictures" / split, seed=len(split))
    config = DataConfig(source=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"), image_size=16)
    began = data.load(config).fingerprint()
    add_picture(tmp_path / "pictures" / "val")
    measure(config, trained_on=config, began=began)
    with pytest.raises(UserError, match=r"give --data\.validation_fraction None --data\.split_seed 0, as then"):
        measure(dataclasses.replace(config, validation_fraction=0.5), trained_on=config, began=began)


def test_pictures_are_those_of_a_run_by_their_place_and_their_split():
    run = DataConfig(source="digits", validation_fraction=0.5, split_seed=3)
    assert is_of_run(dataclasses.replace(run, image_size=99), trained_on=run)
    for change in ({"source": "photos"}, {"validation_fraction": None}, {"split_seed": 4}):
        assert not is_of_run(dataclasses.replace(run, **change), trained_on=run)


def test_a_name_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_same_source("digits", "digits")
    assert not is_same_source("digits", "./digits")
    assert not is_same_source("./digits", "digits")
    assert not is_same_source("tfds:mnist", os.path.abspath("tfds:mnist"))
    assert is_same_source("./photos", str(tmp_path / "photos"))
    assert is_same_source("~/photos", os.path.expanduser("~/photos"))
    assert not is_same_source("a\0b", "c\0d")
