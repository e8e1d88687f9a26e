import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encode, make_picture
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from jaxcnn.data.decoding import decode
from jaxcnn.data.pictures import FORMATS
from jaxcnn.errors import UserError
from server import picture as serving

ORANGE = (240, 120, 30)


def one_colour(mode: str, colour: object, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


def decoded_colour(image: Image.Image, format: str = "PNG", **options: object) -> list[int]:
    pixels = decode(encode(image, format, **options), size=8, where="x")
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].tolist()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_rgb_does_not_change(format):
    options = {"lossless": True} if format == "WEBP" else {}
    assert decoded_colour(one_colour("RGB", ORANGE), format, **options) == list(ORANGE)


def test_every_format_is_one_that_pillow_opens():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


def test_gray_becomes_three_equal_channels():
    assert decoded_colour(one_colour("L", 77)) == [77, 77, 77]
    assert decoded_colour(one_colour("1", 1)) == [255, 255, 255]


def test_palette_gives_its_colours():
    image = one_colour("P", 1)
    image.putpalette([0, 0, 0, *ORANGE])
    assert decoded_colour(image) == list(ORANGE)
    assert decoded_colour(image, "GIF") == list(ORANGE)


def test_cmyk_gives_the_colour_it_prints():
    # JPEGs in CMYK hold inverted values: a naive reader gives the negative.
    red, green, blue = decoded_colour(one_colour("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG", quality=100)
    assert red > 250
    assert green < 5
    assert blue < 5
    assert decoded_colour(one_colour("CMYK", (255, 0, 0, 0)), "TIFF") == [0, 255, 255]


@pytest.mark.parametrize(("alpha", "expected"), [(255, list(ORANGE)), (0, [255, 255, 255]), (51, [252, 228, 210])])
def test_transparent_parts_show_white(alpha, expected):
    assert decoded_colour(one_colour("RGBA", (*ORANGE, alpha))) == expected


def test_gray_with_alpha_shows_white():
    assert decoded_colour(one_colour("LA", (0, 0))) == [255, 255, 255]
    assert decoded_colour(one_colour("LA", (10, 255))) == [10, 10, 10]


def test_a_transparent_palette_entry_shows_white():
    image = one_colour("P", 1)
    image.putpalette([0, 0, 0, *ORANGE])
    assert decoded_colour(image, transparency=1) == [255, 255, 255]
    assert decoded_colour(image, transparency=bytes([255, 0])) == [255, 255, 255]
    assert decoded_colour(image, "GIF", transparency=1) == [255, 255, 255]


def test_a_transparent_colour_without_an_alpha_channel_shows_white():
    assert decoded_colour(one_colour("RGB", ORANGE), transparency=ORANGE) == [255, 255, 255]
    assert decoded_colour(one_colour("L", 9), transparency=9) == [255, 255, 255]


def png(width: int, height: int, *, bits: int, colour: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """Makes a PNG of a kind that Pillow reads but cannot write; every row of `rows` begins with its filter type."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    more = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "colour", "pixel", "transparent", "other", "expected"),
    [
        (1, 0, b"\0", b"\0\0", b"\xff", 255),
        (2, 0, b"\x55", b"\0\1", b"\xaa", 170),
        (4, 0, b"\x11", b"\0\1", b"\x22", 34),
        (8, 0, b"\7", b"\0\7", b"\x22", 34),
        (16, 0, b"\3\xe8", b"\3\xe8", b"\x22" * 2, 34),
        (8, 2, b"\7" * 3, b"\0\7" * 3, b"\x22" * 3, 34),
        (16, 2, b"\3\xe8" * 3, b"\3\xe8" * 3, b"\x22" * 6, 34),
    ],
)
def test_a_transparent_level_of_any_depth_shows_white(bits, colour, pixel, transparent, other, expected):
    above, below = (b"\0" + level * min(bits, 8) for level in (pixel, other))  # below 8 bits, bytes hold several pixels
    content = png(8, 8, bits=bits, colour=colour, rows=above * 4 + below * 4, transparent=transparent)
    pixels = decode(content, size=8, where="x")
    assert (pixels[:4] == 255).all()
    assert (pixels[4:] == expected).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257 * 40, 40), (257 * 200, 200), (65535, 255)])
def test_16_bit_gray_keeps_its_whole_range(format, value, expected):
    image = Image.fromarray(np.full((8, 8), value, np.uint16))
    assert decoded_colour(image, format) == [expected] * 3


def test_16_bit_gray_of_either_byte_order_is_the_same():
    little = encode(Image.fromarray(np.full((8, 8), 257 * 200, "<u2")), "TIFF")
    big = encode(Image.frombytes("I;16B", (8, 8), np.full((8, 8), 257 * 200, ">u2").tobytes()), "TIFF")
    assert (decode(little, size=8, where="x") == decode(big, size=8, where="x")).all()


@pytest.mark.parametrize("levels", [np.float32, np.int32])
def test_32_bit_pixels_are_refused(levels):
    with pytest.raises(
        UserError, match=r"^sky\.tif is not a picture that can be read \(32 bits for each pixel; save it"
    ):
        decode(encode(Image.fromarray(np.ones((8, 8), levels)), "TIFF"), size=8, where="sky.tif")


def test_signed_pixels_are_refused():  # nothing in the file says whether the lowest level or 0 is black
    with pytest.raises(
        UserError, match=r"^sky\.tif is not a picture that can be read \(16 bits for each pixel, signed;"
    ):
        decode(tiff(bytes(128), bits=16, more={339: 2}), size=8, where="sky.tif")


def tiff(pixels: bytes, *, bits: int, samples: int = 1, photometric: int = 1, more: Mapping[int, int] | None = None):
    """Makes a TIFF of 8x8 pixels of a kind that Pillow reads but cannot write; `more` are further tags."""
    start = 256
    tags = {
        256: 8, 257: 8, 258: bits, 259: 1, 262: photometric, 273: start, 277: samples, 278: 8, 279: len(pixels),
    } | (more or {})  # fmt: skip
    entries = b"".join(
        struct.pack("<HHIHH", tag, 3, *((samples, value, value) if tag == 258 else (1, value, 0)))
        for tag, value in sorted(tags.items())
    )
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return header.ljust(start, b"\0") + pixels


@pytest.mark.parametrize(("value", "expected"), [(0, 255), (257 * 40, 215), (65535, 0)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_16_bit_gray_whose_white_is_zero_is_inverted(value, expected, orientation):
    content = tiff(struct.pack("<64H", *[value] * 64), bits=16, photometric=0, more={274: orientation})
    assert (decode(content, size=8, where="x") == expected).all()


@pytest.mark.parametrize(("packed", "expected"), [(b"\0\0\0", 0), (b"\x80\x08\x00", 128), (b"\xff\xff\xff", 255)])
def test_12_bit_gray_keeps_its_whole_range(packed, expected):
    assert (decode(tiff(packed * 32, bits=12), size=8, where="x") == expected).all()


@pytest.mark.parametrize("largest", [4095, 65535])
def test_16_bit_gray_of_the_netpbm_format_keeps_its_whole_range(largest):
    levels = np.linspace(0, largest, 64).round().astype(">u2")
    pixels = decode(b"P5 8 8 %d\n" % largest + levels.tobytes(), size=8, where="x")
    assert (pixels == np.linspace(0, 255, 64).round().reshape(8, 8, 1)).all()


@pytest.mark.parametrize(("pixel", "expected"), [((20, 255), 20), ((0, 0), 255), ((51, 102), 204)])
def test_gray_with_premultiplied_alpha_shows_white(pixel, expected):
    content = tiff(bytes(pixel) * 64, bits=8, samples=2, more={338: 1})
    assert (decode(content, size=8, where="x") == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = make_picture(1, seed=0, size=8)
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for step in undo:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (decode(encode(stored, exif=exif), size=8, where="x") == np.asarray(upright)).all()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photograph of 1067x711 pixels, not a whole number of JPEG blocks."""
    return Image.fromarray(load_sample_image("china.jpg")).resize((1067, 711), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("MPO", "RGB")])
def test_a_large_jpeg_decoded_at_a_fraction_of_its_size_looks_the_same(photo, format, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"save_all": True, "append_images": [Image.new("RGB", photo.size)]} if format == "MPO" else {}
    content = encode(photo.convert(mode), format, quality=90, exif=exif, **options)
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    expected = np.asarray(ImageOps.exif_transpose(whole).resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    pixels = decode(content, size=16, where="x")
    assert 0 < np.abs(pixels - expected).mean() < 0.4
    assert np.abs(pixels - expected).max() <= 8
    assert np.array_equal(pixels, serving.Picture(content, height=16, width=16, max_pixels=10**6).decode())


@pytest.mark.parametrize(
    ("side", "expected"),
    [((64, 64), (64, 64)), ((127, 500), (127, 500)), ((128, 500), (64, 250)), ((3000, 256), (750, 64))],
)
def test_a_jpeg_is_decoded_at_no_smaller_size_than_the_resize_needs(monkeypatch, side, expected):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.append(self.size) or resize(self, *a, **k))
    decode(encode(Image.new("RGB", side), "JPEG"), size=16, where="x")
    assert sizes[0] == expected


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_truncated_large_jpeg_is_refused(photo, share):
    content = encode(photo, "JPEG")
    with pytest.raises(UserError, match="not a picture that can be read"):
        decode(content[: int(len(content) * share)], size=16, where="x")


def test_an_animation_gives_its_first_frame():
    frames = [one_colour("RGB", colour) for colour in (ORANGE, (0, 0, 255))]
    assert decoded_colour(frames[0], "GIF", save_all=True, append_images=frames[1:]) == list(ORANGE)


def test_resizing_is_pillows_bicubic_on_rgb():
    image = make_picture(2, seed=0, size=37).crop((0, 0, 37, 20))
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert (decode(encode(image), size=16, where="x") == expected).all()


def test_colours_are_resized_not_palette_indices():
    image = Image.fromarray(np.array([[0, 1]], np.uint8).repeat(8, 1).repeat(16, 0)).convert("P")
    image.putpalette([0, 0, 0, *ORANGE, 0, 255, 0])
    expected = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC))
    assert (decode(encode(image), size=8, where="x") == expected).all()


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg/>", encode(make_picture(0, seed=0))[:60]])
def test_a_file_that_is_not_a_picture_is_named(content):
    with pytest.raises(UserError, match=r"^cat/1\.png is not a picture that can be read .*; repair or remove it$"):
        decode(content, size=8, where="cat/1.png")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_picture_is_refused(format):
    content = encode(make_picture(0, seed=0, size=64), format)
    with pytest.raises(UserError, match="not a picture that can be read"):
        decode(content[: len(content) * 2 // 3], size=8, where="x")


def test_postscript_is_refused():  # Pillow would start Ghostscript
    with pytest.raises(UserError, match="the format is none of AVIF"):
        decode(encode(make_picture(0, seed=0), "EPS"), size=8, where="x")


def bomb(side: int) -> bytes:
    """Makes a PNG of a few bytes that claims to have `side` x `side` pixels."""
    return png(side, side, bits=8, colour=0, rows=b"")


@pytest.mark.parametrize(
    "side", [8945, 9300, 12000, 60000]
)  # above our limit twice, where Pillow warns, where it raises
def test_a_decompression_bomb_is_refused(side):
    with pytest.raises(UserError, match=r"^x has more than 80,000,000 pixels; make it smaller or remove it$"):
        decode(bomb(side), size=8, where="x")


def test_a_picture_at_the_limit_is_accepted():
    with pytest.raises(UserError, match="not a picture that can be read"):  # the error is that of the missing pixels
        decode(bomb(8944), size=8, where="x")


def png_with_a_wrong_animation() -> bytes:
    whole = png(8, 8, bits=8, colour=0, rows=bytes(72))
    content = b"acTL" + bytes(8)  # an animation without frames
    return whole[:33] + struct.pack(">I", 8) + content + struct.pack(">I", zlib.crc32(content)) + whole[33:]


def tiff_with_a_wrong_orientation() -> bytes:
    one, two = (struct.pack("<HHI", 274, 3, count) for count in (1, 2))
    return tiff(bytes(64), bits=8, more={274: 6}).replace(one, two)


WARNED = {"png": png_with_a_wrong_animation(), "tiff": tiff_with_a_wrong_orientation(), "bomb": bomb(12000)}
"""Files that Pillow opens with a warning."""


@pytest.mark.parametrize("name", WARNED)
def test_pillow_warns_of_these_files(name):
    with pytest.warns((UserWarning, Image.DecompressionBombWarning), match="Invalid APNG|tag 274|bomb"):
        Image.open(io.BytesIO(WARNED[name]))


OUTCOMES = """
import sys, warnings
from pathlib import Path
{first}
{second}
if {action!r}:
    warnings.filterwarnings({action!r}, module="PIL")
from jaxcnn.errors import UserError
before = list(warnings.filters)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, decode(path.read_bytes(), size=8, where="x").max())
    except UserError as error:
        print(error)
assert warnings.filters == before
"""


@pytest.mark.parametrize("action", ["error", "always", None])
@pytest.mark.parametrize(
    "imports",
    [
        ("from jaxcnn.data.decoding import decode", "import server.picture"),
        ("import server.picture", "from jaxcnn.data.decoding import decode"),
    ],
)
def test_decoding_depends_neither_on_warning_filters_nor_on_imports(tmp_path, action, imports):
    for name, content in WARNED.items():
        (tmp_path / name).write_bytes(content)
    first, second = imports
    code = OUTCOMES.format(first=first, second=second, action=action)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "x has more than 80,000,000 pixels; make it smaller or remove it\npng 0\ntiff 0\n", (
        done.stderr
    )
    assert done.stderr == ""


def test_warning_filters_are_restored_when_the_last_thread_has_decoded():
    before, inside = list(warnings.filters), []

    def decode_one(_: int) -> None:
        decode(WARNED["tiff"], size=8, where="x")
        inside.append(list(warnings.filters))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_one, range(200)))
    assert before in [*inside, list(warnings.filters)]
    assert list(warnings.filters) == before
    with pytest.raises(UserError):
        decode(b"?", size=8, where="x")
    assert list(warnings.filters) == before


MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["L", "P"],
}


@settings(max_examples=150)
@given(
    kind=st.sampled_from([(format, mode) for format, modes in MODES.items() for mode in modes]),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_any_mode_and_size_is_decoded(kind, width, height, size, seed):
    format, mode = kind
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise.view(np.uint16)[..., 0].copy())
    else:
        image = Image.fromarray(noise, "RGBA").convert("RGB").convert(mode)
        if "A" in mode:
            image.putalpha(Image.fromarray(noise[..., 3]))
    pixels = decode(encode(image, format), size=size, where="x")
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM"]),
    position=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=8),
)
def test_a_damaged_picture_is_decoded_or_named_in_one_line(kind, position, junk):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    content = bytearray(encode(make_picture(0, seed=0), kind, **options))
    start = int(position * len(content))
    content[start : start + len(junk)] = junk
    message = "broken.png "
    try:
        decode(bytes(content), size=8, where="broken.png")
    except UserError as error:
        message = str(error)
    assert message.startswith("broken.png ")
    assert "\n" not in message


@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(content):
    with pytest.raises(UserError):
        decode(content, size=8, where="x")
