"""One split: what training and evaluation see of its pictures, and what is known of their files."""

import os

import numpy as np
import pytest
from pictures import encode, make_picture

from jaxcnn.data.crops import draw_crops
from jaxcnn.data.encoded_images import EncodedImages
from jaxcnn.data.pictures import Picture
from jaxcnn.data.resize import Resize
from jaxcnn.data.rows import Rows
from jaxcnn.data.split import Split, facts_type

LABELS = np.arange(5, dtype=np.int32)
# The pixels of picture i are numbered from 100 * i.
ARRAY = (100 * np.arange(5)[:, None] + np.arange(36)).reshape(5, 6, 6, 1).repeat(3, -1).astype(np.uint8)
PICTURES = [Picture(where=f"{i}.jpg", encoded=encode(make_picture(i % 3, seed=i, size=40)), label=i) for i in range(5)]


def make_facts(count: int) -> np.ndarray:
    facts = np.zeros(count, facts_type(20))
    facts["file"] = [os.fsencode(f"caf\udce9/{i}.jpg") for i in range(count)]
    return facts


def make_encoded() -> EncodedImages:
    return EncodedImages(PICTURES, 8, Resize(mode="crop", side=10))


@pytest.mark.parametrize(("longest", "bytes_"), [(0, 1), (1, 1), (7, 7)])
def test_a_record_has_room_for_the_longest_path(longest, bytes_):
    fields = {name: found[0] for name, found in facts_type(longest).fields.items()}
    assert fields.keys() == {"file", "same", "alike", "least", "is_gray"}
    assert fields["file"] == np.dtype(f"S{bytes_}")
    assert [fields[name] for name in ("same", "alike", "least")] == [np.dtype("<i4")] * 3
    assert fields["is_gray"] == np.dtype(bool)


@pytest.mark.parametrize("side", [None, 6])
def test_pictures_of_the_models_size_are_shown_whole(side):
    split = Split(ARRAY, LABELS, side=side)
    assert split.shown is split.images
    assert split.shown.shape == (5, 6, 6, 3)


def test_the_middle_of_larger_pictures_is_shown():
    split = Split(ARRAY, LABELS, side=4)
    np.testing.assert_array_equal(split.shown[:], ARRAY[:, 1:5, 1:5])
    assert split.shown.shape == (5, 4, 4, 3)
    chosen = split.select(np.array([3, 1]))
    np.testing.assert_array_equal(chosen.shown[:], ARRAY[[3, 1], 1:5, 1:5])
    np.testing.assert_array_equal(chosen.images[:], ARRAY[[3, 1]])


def test_a_selection_has_labels_and_facts_and_copies_no_pixels():
    split = Split(ARRAY, LABELS, side=4, facts=make_facts(5), crop_scale=(0.5, 1.0))
    for chosen in (split.select(np.array([4, 2])), split.select(np.array([0, 4, 2])).select(np.array([1, 2]))):
        assert isinstance(chosen.images, Rows)
        assert chosen.images.array is ARRAY
        assert chosen.images.indices.tolist() == [4, 2]
        assert (len(chosen), chosen.labels.tolist()) == (2, [4, 2])
        assert chosen.facts["file"].tolist() == split.facts["file"][[4, 2]].tolist()
        assert (chosen.side, chosen.crop_scale) == (4, (0.5, 1.0))
    assert Split(ARRAY, LABELS).select(np.array([0])).facts is None


def test_a_file_is_named_by_its_path_or_else_by_its_number():
    split = Split(ARRAY, LABELS, facts=make_facts(5))
    assert split.file(3) == "caf\udce9/3.jpg"
    assert split.select(np.array([2])).file(0) == "caf\udce9/2.jpg"
    assert Split(ARRAY, LABELS).file(3) == "3"


def test_decoded_pictures_are_read_as_they_are():
    split = Split(ARRAY, LABELS).cropped((0.2, 0.5))
    assert split.crop_scale is None
    rows = np.array([1, 3])
    np.testing.assert_array_equal(split.read(rows, draw_crops(seed=0, step=0, count=2)), ARRAY[rows])
    # Also if the crops are set beforehand: the device takes them.
    split = Split(ARRAY, LABELS, crop_scale=(0.2, 0.5))
    np.testing.assert_array_equal(split.read(rows, draw_crops(seed=0, step=0, count=2)), ARRAY[rows])


@pytest.mark.parametrize("is_selected", [False, True])
def test_encoded_pictures_are_cropped_while_they_are_decoded(is_selected):
    images, draws = make_encoded(), draw_crops(seed=0, step=0, count=2)
    whole = Split(images, LABELS, side=8)
    rows = np.array([4, 1])
    split, places = (whole.select(np.array([1, 0, 4])), np.array([2, 0])) if is_selected else (whole, rows)
    np.testing.assert_array_equal(split.read(places, draws), images[rows])
    cropped = split.cropped((0.2, 0.5))
    assert cropped.crop_scale == (0.2, 0.5)
    assert cropped.read(places, draws).shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(cropped.read(places, draws), images.crop(rows, draws, area=(0.2, 0.5)))
    np.testing.assert_array_equal(cropped.shown[places], images[rows][:, 1:9, 1:9])
    assert cropped.cropped(None).crop_scale is None
