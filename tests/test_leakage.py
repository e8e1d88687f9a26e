"""Pictures that a model was trained on are never validation pictures, wherever they are stored."""

import contextlib
import dataclasses
import os
import re
import shutil

import pytest
from pictures import make_picture, write_class_folders, zip_folder
from PIL import Image

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


@pytest.fixture
def pets(tmp_path):
    """Settings of a folder with its own validation pictures, none of which is a training picture."""
    write_class_folders(tmp_path / "pets" / "train", count=8)
    write_class_folders(tmp_path / "pets" / "val", count=4, seed=100)
    return DataConfig(source=str(tmp_path / "pets"), cache_dir=str(tmp_path / "cache"), image_size=16)


SEEN = r"at least {} of the {} validation pictures of {} are pictures that the model was trained on, such as .*\.png: "
"""The error and the warning, but for the remedy."""


@pytest.mark.parametrize(("place", "size"), [("train", 16), ("train", 24), ("copy", 24), ("renamed", 16), ("zip", 16)])
def test_the_training_pictures_alone_are_not_held_out(tmp_path, pets, place, size):
    fingerprint = data.load(pets).fingerprint()
    source = tmp_path / "pets" / "train"
    match place:
        case "copy":
            source = shutil.copytree(source, tmp_path / "copy")
        case "renamed":
            source = shutil.copytree(source, tmp_path / "renamed")
            (source / "cat").rename(source / "tabby")
        case "zip":
            source = zip_folder(source, tmp_path / "zip.zip")
    config = dataclasses.replace(pets, source=str(source), image_size=size, validation_fraction=0.5)
    message = SEEN.format(8, 8, place) + "the accuracy would be too high; .* allow these with --data.allow_leaks$"
    with pytest.raises(UserError, match=f"^{message}"):
        check(config, trained_on=pets, fingerprint=fingerprint)
    # Records of earlier versions identify no pictures. Those in the same folder are looked at.
    for earlier in (
        None,
        dataclasses.replace(fingerprint, seen=""),
        dataclasses.replace(fingerprint, seen="", decoder=0),
    ):
        with pytest.raises(UserError, match=f"^{message}") if place == "train" else contextlib.nullcontext():
            check(config, trained_on=pets, fingerprint=earlier)
    for other in ({"decoder": 0}, {"train": 0, "seen": "?"}, {"labels": "others", "seen": ""}):
        check(config, trained_on=pets, fingerprint=dataclasses.replace(fingerprint, **other))
    allowed = dataclasses.replace(config, allow_leaks=True)
    warning = check_no_leakage(data.load(allowed), allowed, trained_on=pets, fingerprint=fingerprint)
    assert re.fullmatch(SEEN.format(8, 8, place) + "expect less accuracy on other pictures", warning)


def test_training_pictures_that_are_gone_are_not_looked_for(tmp_path, pets):
    (tmp_path / "pets" / "train" / "cat" / "7.png").write_bytes(b"damaged")
    other = write_class_folders(tmp_path / "pets" / "other", seed=300)
    config = dataclasses.replace(pets, source=str(other))
    for trained_on in (pets, dataclasses.replace(pets, source=""), dataclasses.replace(pets, source="digits")):
        check(config, trained_on=trained_on, fingerprint=None)


def test_a_part_of_the_training_pictures_is_recognised_by_a_sample(tmp_path, pets, monkeypatch):
    monkeypatch.setattr("jaxcnn.data.dataset.SAMPLE", 6)
    fingerprint = data.load(pets).fingerprint()
    assert len(fingerprint.identities()) == 6
    part = shutil.copytree(tmp_path / "pets" / "train", tmp_path / "part")
    for name in ("cat", "dog"):
        (part / name / "7.png").unlink()
    config = dataclasses.replace(pets, source=str(part), validation_fraction=0.9)
    with pytest.raises(UserError, match=r"validation pictures of part are pictures that the model was trained on"):
        check(config, trained_on=pets, fingerprint=fingerprint)


def test_validation_pictures_of_the_source_may_not_become_training_pictures(tmp_path, pets):
    fingerprint = data.load(pets).fingerprint()
    for split, other in (("train", "old"), ("val", "train"), ("old", "val")):
        (tmp_path / "pets" / split).rename(tmp_path / "pets" / other)
    with pytest.raises(UserError, match=SEEN.format(16, 16, "pets")):
        check(pets, trained_on=pets, fingerprint=fingerprint)


@pytest.mark.parametrize("new", [3, 4])
def test_a_few_training_pictures_are_a_warning(tmp_path, pets, new):
    fingerprint = data.load(pets).fingerprint()
    write_class_folders(tmp_path / "others" / "train", count=4, seed=200)
    write_class_folders(tmp_path / "others" / "val", count=4, seed=4 + new)
    config = dataclasses.replace(pets, source=str(tmp_path / "others"))
    warning = check_no_leakage(data.load(config), config, trained_on=pets, fingerprint=fingerprint)
    if new == 4:
        assert warning is None
    else:
        assert re.fullmatch(SEEN.format(2, 8, "others") + "expect less accuracy on other pictures", warning)


def test_a_picture_that_occurs_often_says_nothing_about_the_others(tmp_path, pets, monkeypatch):
    """Cameras take many black pictures."""
    monkeypatch.setattr("jaxcnn.data.dataset.SAMPLE", 6)
    write_class_folders(tmp_path / "others" / "train", count=4, seed=200)
    write_class_folders(tmp_path / "others" / "val", count=4, seed=300)
    black = Image.new("RGB", (16, 16))
    for file in (
        *(f"pets/train/dog/{number}.png" for number in range(8)),
        "others/val/cat/0.png",
        "others/val/dog/2.png",
    ):
        black.save(tmp_path / file)
    fingerprint, config = data.load(pets).fingerprint(), dataclasses.replace(pets, source=str(tmp_path / "others"))
    assert len(set(fingerprint.identities())) == 4
    warning = check_no_leakage(data.load(config), config, trained_on=pets, fingerprint=fingerprint)
    assert re.fullmatch(SEEN.format(2, 8, "others") + "expect less accuracy on other pictures", warning)


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
