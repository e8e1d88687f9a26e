import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode, make_picture
from PIL import ExifTags, Image

from jaxcnn.data.crops import CROP_ASPECT, Crop, draw_crops
from jaxcnn.data.decoding import decode, decode_crop
from jaxcnn.data.resize import Resize
from jaxcnn.errors import UserError

number = st.floats(0, 1)
crops = st.builds(
    lambda low, high, draws: Crop((low, max(low, high)), np.array(draws)),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.lists(number, min_size=4, max_size=4),
)
sides = st.integers(1, 3000)


@given(crop=crops, width=sides, height=sides, mode=st.sampled_from(["crop", "stretch"]))
def test_a_crop_lies_in_the_picture(crop, width, height, mode):
    left, top, right, bottom = crop.box(width, height, mode=mode)
    assert -1e-9 * width <= left < right <= width * (1 + 1e-9)
    assert -1e-9 * height <= top < bottom <= height * (1 + 1e-9)
    aspect = (right - left) / (bottom - top)
    if mode == "stretch":
        aspect *= height / width
    assert 1 / CROP_ASPECT - 1e-9 <= aspect <= CROP_ASPECT + 1e-9
    assert min(right - left, bottom - top) >= crop.least_side * min(width, height) * (1 - 1e-9)
    # The area is as drawn, unless the picture is too long for it.
    share = (right - left) * (bottom - top) / (width * height)
    low, high = crop.area
    drawn = low + crop.draws[0] * (high - low)
    long = max(width, height) / min(width, height)
    if mode == "stretch" or drawn <= 1 / (CROP_ASPECT * long):
        assert share == pytest.approx(drawn)
    assert share <= drawn * (1 + 1e-9)


@given(crop=crops, width=sides, height=sides)
def test_a_crop_of_a_padded_picture_lies_in_the_square_around_it(crop, width, height):
    left, top, right, bottom = crop.box(width, height, mode="pad")
    long, slack = max(width, height), 1e-9 * max(width, height)
    assert abs((left + right - width) / 2) + (right - left) / 2 <= long / 2 + slack
    assert abs((top + bottom - height) / 2) + (bottom - top) / 2 <= long / 2 + slack
    assert min(right - left, bottom - top) >= crop.least_side * min(width, height) * (1 - 1e-9)


def test_crops_are_spread_over_their_range():
    boxes = [Crop((0.2, 0.6), draws).box(400, 300, mode="crop") for draws in draw_crops(seed=0, step=0, count=4000)]
    left, top, right, bottom = np.array(boxes).T
    area, ratio = (right - left) * (bottom - top) / (400 * 300), np.log((right - left) / (bottom - top))
    assert (area.min(), area.mean(), area.max()) == pytest.approx((0.2, 0.4, 0.6), abs=0.01)
    assert (ratio.min(), ratio.max()) == pytest.approx((-math.log(CROP_ASPECT), math.log(CROP_ASPECT)), abs=0.01)
    assert ((left + right).mean() / 2, (top + bottom).mean() / 2) == pytest.approx((200, 150), abs=3)
    assert (left.min(), top.min(), right.max(), bottom.max()) == pytest.approx((0, 0, 400, 300), abs=1)


def test_the_random_numbers_are_a_function_of_seed_and_step():
    draws = {(seed, step): draw_crops(seed=seed, step=step, count=3).tobytes() for seed in (0, 1) for step in (0, 1, 7)}
    assert len(set(draws.values())) == 6
    assert draw_crops(seed=1, step=7, count=3).tobytes() == draws[1, 7]


def test_the_whole_picture_is_a_crop_of_all_of_its_area():
    encoded = encode(make_picture(1, seed=0, size=40).resize((50, 40)))
    cut = decode_crop(encoded, Crop((1.0, 1.0), np.array([0.3, 0.3, 0.3, 0.3])), size=16, where="x")
    assert np.array_equal(cut, decode(encoded, size=16, where="x"))


def gradient(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "turned", "large"])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_the_pixels_are_those_of_the_box(format, filter):
    width, height, size = (1500, 1000, 32) if format == "large" else (150, 100, 32)
    image, options = gradient(width, height), {} if format == "PNG" else {"quality": 98, "subsampling": 0}
    if format == "turned":  # A viewer turns it back by a quarter
        image = image.transpose(Image.Transpose.ROTATE_90)
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = 6
    encoded = encode(image, "PNG" if format == "PNG" else "JPEG", **options)
    for draws in draw_crops(seed=3, step=0, count=5):
        crop = Crop((0.1, 0.8), draws)
        left, top, right, bottom = crop.box(width, height, mode="crop")
        pixels = decode_crop(encoded, crop, size=size, resize=Resize(mode="crop", side=40, filter=filter), where="x")
        assert pixels.shape == (size, size, 3)
        centres = (np.arange(size) + 0.5) / size
        expected_red = 255 * (left + centres * (right - left)) / width
        expected_green = 255 * (top + centres * (bottom - top)) / height
        assert np.abs(pixels[..., 0] - expected_red[None]).max() < 6
        assert np.abs(pixels[..., 1] - expected_green[:, None]).max() < 6


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(monkeypatch):
    encoded, loaded = encode(gradient(1600, 1200), "JPEG"), []
    load = Image.Image.resize

    def resize(image, *arguments, **options):
        loaded.append(image.size)
        return load(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    middle = np.array([0.5, 0.5, 0.5, 0.5])
    for area, size in ((0.75, (400, 300)), (0.05, (1600, 1200))):
        decode_crop(encoded, Crop((area, area), middle), size=56, where="x")
        assert loaded[-1] == size


def test_a_crop_of_a_padded_picture_shows_its_bars():
    encoded = encode(Image.new("RGB", (100, 50), "red"))
    whole = decode_crop(encoded, Crop((1.0, 1.0), np.full(4, 0.5)), size=20, resize=Resize(mode="pad"), where="x")
    assert np.array_equal(whole, decode(encoded, size=20, resize=Resize(mode="pad"), where="x"))
    corner = Crop((0.05, 0.05), np.array([0.5, 0.5, 0, 0]))
    assert (decode_crop(encoded, corner, size=20, resize=Resize(mode="pad"), where="x") == 127).all()


@pytest.mark.parametrize("encoded", [b"", b"?", encode(gradient(64, 64), "JPEG")[:900]], ids=["empty", "text", "cut"])
def test_a_picture_that_cannot_be_read_is_named(encoded):
    with pytest.raises(UserError, match=r"^cat/1\.jpg is not a picture that can be read"):
        decode_crop(encoded, Crop((0.5, 1.0), np.full(4, 0.5)), size=16, where="cat/1.jpg")


def test_transparent_parts_are_white():
    image = Image.new("L", (40, 40), 0)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0, bits=2)
    assert (decode_crop(file.getvalue(), Crop((0.5, 1.0), np.full(4, 0.5)), size=16, where="x") == 255).all()
