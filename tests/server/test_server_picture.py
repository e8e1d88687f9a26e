import contextlib
import functools
import pickle
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from sklearn.datasets import load_sample_images

from jaxcnn.data import decoding as training
from jaxcnn.errors import UserError
from server import picture
from server.errors import PictureError

ROOT = Path(__file__).parents[2]
MAX_PIXELS = 1_000_000


@pytest.fixture(autouse=True)
def server_warnings():
    """The filter that the server has while it runs."""
    with picture.warnings_ignored():
        yield


def open_picture(data: bytes, height: int = 8, width: int = 8, max_pixels: int = MAX_PIXELS) -> picture.Picture:
    return picture.Picture(data, height=height, width=width, max_pixels=max_pixels)


def decode(data: bytes, height: int = 8, width: int = 8, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    return open_picture(data, height, width, max_pixels).decode()


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Builds a PNG of a kind that Pillow reads but does not write; `rows` are the raw pixels, big-endian."""
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def noise(mode: str) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(len(mode)).integers(0, 256, (19, 23, channels), np.uint8)
    return Image.frombytes(mode, (23, 19), values.tobytes())


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pictures() -> dict[str, bytes]:
    rgb = noise("RGB")
    palette = rgb.quantize(16)
    words = np.random.default_rng(0).integers(0, 2**16, (19, 23 * 3), np.uint16)
    found = {
        **{f"{mode} PNG": encode(noise(mode)) for mode in ("RGB", "RGBA", "L", "LA")},
        **{f"{mode} JPEG": encode(noise(mode), "JPEG") for mode in ("RGB", "L", "CMYK")},
        **{f"RGB {kind}": encode(rgb, kind) for kind in ("WEBP", "BMP", "GIF")},
        **{f"RGBA {kind}": encode(noise("RGBA"), kind) for kind in ("WEBP", "GIF")},
        **{f"EXIF {orientation} JPEG": encode(rgb, "JPEG", exif=oriented(orientation)) for orientation in range(10)},
        **{f"EXIF 6 {kind}": encode(noise("RGBA"), kind, exif=oriented(6)) for kind in ("PNG", "WEBP")},
        "progressive JPEG": encode(rgb, "JPEG", progressive=True),
        "4:4:4 JPEG": encode(rgb, "JPEG", subsampling=0),
        "EXIF 8 CMYK JPEG": encode(noise("CMYK"), "JPEG", exif=oriented(8)),
        "1 bit": encode(noise("L").convert("1")),
        "palette": encode(palette),
        "palette with one transparent colour": encode(palette, transparency=3),
        "palette with alpha": encode(palette, transparency=bytes(range(0, 256, 16))),
        "palette with alpha, EXIF 5": encode(palette, transparency=bytes(range(0, 256, 16)), exif=oriented(5)),
        "RGB with a transparent colour": encode(rgb, transparency=rgb.getpixel((3, 3))),
        "gray with a transparent level": encode(noise("L"), transparency=77),
        "16-bit gray": encode(Image.fromarray(words)),
        "16-bit gray, EXIF 7": encode(Image.fromarray(words), exif=oriented(7)),
        "16-bit gray with a transparent level": png(
            69, 19, depth=16, colour=0, rows=words.astype(">u2").tobytes(), extra=chunk(b"tRNS", b"\0\7")
        ),
        "16-bit RGB": png(23, 19, depth=16, colour=2, rows=words.astype(">u2").tobytes()),
        "multi-picture JPEG": encode(rgb, "MPO", save_all=True, append_images=[noise("RGB").rotate(90)]),
    }
    others = [Image.new("RGB", rgb.size, "red"), Image.new("RGB", rgb.size, "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        found[f"animated {kind}"] = encode(rgb, kind, save_all=True, append_images=others)
    return found


PICTURES = pictures()


@pytest.mark.parametrize("kind", PICTURES)
def test_the_input_is_bit_for_bit_that_of_training(kind):
    served = decode(PICTURES[kind])
    assert served.shape == (8, 8, 3)
    assert served.dtype == np.uint8
    np.testing.assert_array_equal(served, training.decode(PICTURES[kind], size=8, where="test"))


@pytest.mark.parametrize("photo", load_sample_images().images, ids=["temple", "flower"])
@pytest.mark.parametrize("scale", [0.8, 1, 3.3])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_with_the_same_result(photo, scale, orientation):
    image = Image.fromarray(photo)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    data = encode(image, "JPEG", quality=90, exif=oriented(orientation))
    served = decode(data, height=16, width=16, max_pixels=10_000_000)
    np.testing.assert_array_equal(served, training.decode(data, size=16, where="test"))
    whole = ImageOps.exif_transpose(Image.open(BytesIO(data))).resize((16, 16), Image.Resampling.BICUBIC)
    difference = np.abs(served.astype(int) - np.asarray(whole))
    assert difference.mean() < 0.3
    assert difference.max() <= 8


@pytest.mark.parametrize(
    ("size", "expected"),
    [((127, 500), (127, 500)), ((128, 500), (64, 250)), ((256, 256), (64, 64)), ((3000, 200), (1500, 100))],
)
def test_a_jpeg_is_not_reduced_below_what_the_resize_needs(monkeypatch, size, expected):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.append(self.size) or resize(self, *a, **k))
    decode(encode(Image.new("RGB", size), "JPEG"), height=8, width=16)
    assert sizes[0] == expected


def test_stretches_with_pillows_bicubic_filter():
    expected = np.asarray(noise("RGB").resize((5, 11), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode(encode(noise("RGB")), height=11, width=5), expected)


def test_a_picture_of_the_models_size_is_untouched():
    np.testing.assert_array_equal(decode(encode(noise("RGB")), height=19, width=23), np.asarray(noise("RGB")))


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (5, (0, 0)), (6, (0, 1)), (7, (1, 1)), (8, (1, 0))],
)
def test_turned_upright(orientation, corner):
    stored = Image.new("RGB", (2, 2), "black")
    stored.putpixel((0, 0), (255, 255, 255))
    upright = decode(encode(stored, exif=oriented(orientation)), height=2, width=2)
    assert np.argwhere(upright[..., 0] == 255).tolist() == [list(corner)]


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", {}, (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), "PNG", {}, (255, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", {}, (255, 255, 255)),
        (Image.new("P", (4, 4), 0), "PNG", {"transparency": 0}, (255, 255, 255)),
        (Image.new("1", (4, 4), 1), "PNG", {}, (255, 255, 255)),
        (Image.new("L", (4, 4), 99), "PNG", {}, (99, 99, 99)),
        (Image.new("I;16", (4, 4), 65535), "PNG", {}, (255, 255, 255)),
        (Image.new("I;16", (4, 4), 32896), "PNG", {}, (128, 128, 128)),
        (Image.new("I;16", (4, 4), 128), "PNG", {}, (0, 0, 0)),
        (Image.new("I;16", (4, 4), 129), "PNG", {}, (1, 1, 1)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", {}, (255, 0, 0)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG", {}, (255, 255, 255)),
        (
            Image.new("RGB", (4, 4), "lime"),
            "GIF",
            {"save_all": True, "append_images": [Image.new("RGB", (4, 4))]},
            (0, 255, 0),
        ),
    ],
)
def test_becomes_the_colours_a_viewer_shows(image, kind, options, expected):
    assert decode(encode(image, kind, **options)).reshape(-1, 3).tolist() == [list(expected)] * 64


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent", "other"),
    [
        (1, 0, b"\x30", (0,), 255),
        (2, 0, b"\x5a", (1,), 170),
        (4, 0, b"\x11\x22", (1,), 34),
        (8, 0, b"\7\7\x22\x22", (7,), 34),
        (16, 0, struct.pack(">4H", 1000, 1000, 8738, 8738), (1000,), 34),
        (8, 2, bytes([7] * 6 + [34] * 6), (7, 7, 7), 34),
        (16, 2, struct.pack(">12H", *[1000] * 6, *[8738] * 6), (1000, 1000, 1000), 34),
    ],
)
def test_the_transparent_colour_of_a_png_becomes_white(depth, colour, row, transparent, other):
    extra = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    data = png(4, 4, depth=depth, colour=colour, rows=row * 4, extra=extra)
    served = decode(data, height=4, width=4)
    assert served[..., 0].tolist() == [[255, 255, other, other]] * 4
    np.testing.assert_array_equal(served, training.decode(data, size=4, where="test"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_hide_the_picture(kind):
    exif = oriented(6)
    exif[0x010F], exif[0x011A] = "camera", 72.0
    content = exif.tobytes()
    for i in range(len(content)):
        damaged = content[:i] + b"\xff" + content[i + 1 :]
        assert decode(encode(noise("RGB"), kind, exif=damaged)).shape == (8, 8, 3)
    for end in range(1, len(content)):
        assert decode(encode(noise("RGB"), kind, exif=content[:end])).shape == (8, 8, 3)


def exif_of_rationals(tag: int, count: int) -> bytes:
    """Builds EXIF data with a unit of resolution, and a tag of `count` fractions."""
    entries = sorted([(0x0128, 3, 1, struct.pack("<HH", 2, 0)), (tag, 5, count, struct.pack("<L", 38))])
    table = b"".join(struct.pack("<HHL4s", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + struct.pack("<LL", 6, 1) * count


def jpeg_with_exif(exif: bytes) -> bytes:
    """Builds a JPEG without a density, whose EXIF data fill as many segments as they need."""
    whole = encode(noise("RGB"), "JPEG")
    pieces = [exif[i : i + 65_000] for i in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + (len(piece) + 8).to_bytes(2) + b"Exif\0\0" + piece for piece in pieces)
    return b"\xff\xd8" + segments + whole[whole.index(b"\xff\xdb") :]


@pytest.mark.parametrize("encode_with", [jpeg_with_exif, lambda exif: encode(noise("RGB"), "WEBP", exif=exif)])
def test_an_orientation_of_very_many_values_is_not_decoded(encode_with):
    data = encode_with(exif_of_rationals(0x0112, 300_000))
    start = time.process_time()
    assert decode(data).shape == (8, 8, 3)
    assert time.process_time() - start < 0.3  # All values take two seconds.


@pytest.mark.parametrize("count", [2, 900])
def test_of_several_orientations_the_first_one_counts_as_in_training(count):
    data = encode(noise("RGB"), "WEBP", lossless=True, exif=exif_of_rationals(0x0112, count))
    np.testing.assert_array_equal(decode(data), training.decode(data, size=8, where="test"))
    np.testing.assert_array_equal(decode(data), decode(encode(noise("RGB").transpose(Image.Transpose.ROTATE_270))))


def test_a_resolution_of_very_many_values_is_refused():
    assert decode(jpeg_with_exif(exif_of_rationals(0x011A, 1))).shape == (8, 8, 3)
    start = time.process_time()
    with pytest.raises(PictureError, match="EXIF data with thousands of resolutions: save it again"):
        decode(jpeg_with_exif(exif_of_rationals(0x011A, 300_000)))
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "EPS", "PCX", "TGA", "PDF", "JPEG2000", "DDS", "SGI", "AVIF"])
def test_other_formats_are_refused(kind):
    with pytest.raises(PictureError, match="not a picture in a supported format: send JPEG, PNG"):
        decode(encode(noise("RGB"), kind))


@pytest.mark.parametrize(
    "data", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"hello", b"\0" * 1000, b"\xff\xd8", b"GIF89a"]
)
def test_data_that_is_not_a_picture_is_refused(data):
    with pytest.raises(PictureError):
        decode(data)


def test_an_empty_picture_is_refused():
    with pytest.raises(PictureError, match="empty"):
        decode(b"")


@pytest.mark.parametrize("step", ["open", "load"])
def test_a_lack_of_memory_is_no_damage_to_the_picture(monkeypatch, step):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(*{"open": (Image, "open"), "load": (ImageFile.ImageFile, "load")}[step], fail)
    with pytest.raises(MemoryError):
        decode(PICTURES["RGB PNG"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_truncated_picture_is_refused(kind):
    whole = encode(noise("RGB").resize((100, 100)), kind)
    for end in range(1, len(whole) * 9 // 10, len(whole) // 23):
        with pytest.raises(PictureError):
            decode(whole[:end])


@pytest.mark.parametrize("size", [(30_000, 30_000), (1001, 1000), (65_536, 1), (1, 65_536), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    with pytest.raises(
        PictureError, match=r"pixels: scale it down to at most 1000000 pixels in total and 65535 on a side"
    ):
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"never read"))


def test_the_largest_picture_is_accepted():
    assert decode(encode(Image.new("1", (1000, 1000)))).shape == (8, 8, 3)


def with_many_scans(count: int) -> bytes:
    """Builds a progressive JPEG that repeats its last scan, with its Huffman table, `count` times."""
    whole = encode(Image.new("L", (1000, 1000), 250), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda"))
    return whole[:start] + whole[start:-2] * count + whole[-2:]


def test_a_jpeg_of_very_many_scans_is_refused():
    assert (decode(with_many_scans(90)) == 250).all()
    with pytest.raises(PictureError, match="a JPEG of more than 100 scans"):
        decode(with_many_scans(101))


@pytest.mark.parametrize("marker", [0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_an_arithmetic_coded_jpeg_is_refused(marker):
    whole = encode(noise("RGB"), "JPEG")
    with pytest.raises(PictureError, match="an arithmetic-coded JPEG, which is not supported: save it as plain JPEG"):
        decode(whole.replace(b"\xff\xc0", bytes([0xFF, marker])))


@pytest.mark.parametrize("piece", [b"\xff\xda\0\2", b"\xff\xc9\0\2"])
def test_bytes_that_look_like_scans_are_not_counted(piece):
    whole = encode(noise("RGB"), "JPEG", comment=piece * 200)
    assert (decode(whole + piece * 200) == decode(whole)).all()


def with_chunks(kind: str, size: int, count: int) -> bytes:
    """Builds a picture with `count` chunks, segments or comment blocks of `size` bytes before its pixels."""
    whole, filling = encode(noise("RGB"), kind), bytes(size)
    if kind == "PNG":
        return whole[:33] + chunk(b"aaAa", filling) * count + whole[33:]
    if kind == "JPEG":
        return whole[:2] + (b"\xff\xe1" + (size + 8).to_bytes(2) + b"Exif\0\0" + filling) * count + whole[2:]
    start = 13 + 3 * 2 ** (1 + (whole[10] & 7))  # After the palette.
    return whole[:start] + b"\x21\xfe" + (bytes([size]) + filling) * count + b"\0" + whole[start:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_a_file_of_very_many_chunks_is_refused(kind):
    assert decode(with_chunks(kind, 200, 200)).shape == (8, 8, 3)
    with pytest.raises(PictureError, match="far too many chunks"):
        decode(with_chunks(kind, 1, 10_000))


def test_a_file_of_small_chunks_is_read():
    levels = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    whole = encode(Image.fromarray(levels))
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in levels))
    pieces = b"".join(chunk(b"IDAT", pixels[i : i + 4096]) for i in range(0, len(pixels), 4096))
    assert (decode(whole[:33] + pieces + chunk(b"IEND", b"")) == decode(whole)).all()


def gif_with_xmp(size: int) -> bytes:
    """Builds a GIF with `size` bytes of XMP: plain text, whose letters a parser takes for block lengths."""
    whole, end = encode(noise("RGB"), "GIF"), bytes([1, *range(255, -1, -1), 0])
    text = b"<rdf:li stEvt:action='saved' stEvt:instanceID='xmp.iid:0180117407206811'/>\n"
    start = 13 + 3 * 2 ** (1 + (whole[10] & 7))
    return whole[:start] + b"\x21\xff\x0bXMP DataXMP" + text * (size // len(text)) + end + whole[start:]


def gif_to_be_replaced(method: int, width: int, height: int, *, transparent: bool) -> bytes:
    """Builds a GIF of one frame, which says what replaces it before the next one."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([0, 0, 0, 255, 0, 0])
    control = b"\x21\xf9\x04" + bytes([method << 2 | transparent]) + bytes(4)
    return screen + control + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0;"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory in use is Linux's to tell")
@pytest.mark.parametrize(("method", "transparent"), [(2, False), (2, True), (3, True)])
def test_open_gifs_hold_no_memory_for_their_second_frames(method, transparent):
    def resident() -> int:
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    data = gif_to_be_replaced(method, 5000, 5000, transparent=transparent)
    before = resident()
    opened = [open_picture(data, max_pixels=25_000_000) for _ in range(8)]
    assert resident() - before < 50_000_000  # A byte for each pixel takes 200 MB.
    assert {found.cost.pixels for found in opened} == {25_000_000 * (1 + transparent)}


def test_a_gif_that_is_to_be_replaced_is_read_as_in_training():
    frames = [noise("RGB"), Image.new("RGB", (23, 19), "red")]
    for method in range(4):
        data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=method)
        np.testing.assert_array_equal(decode(data), training.decode(data, size=8, where="test"))


def test_a_gif_with_much_metadata_is_read():
    assert (decode(gif_with_xmp(300_000)) == decode(gif_with_xmp(0))).all()


def test_a_bmp_with_more_colours_than_its_pixels_can_name_is_refused():
    data = bytearray(encode(Image.new("P", (4, 3)), "BMP"))
    assert data[28] == 8
    for colors in (0, 2, 256):
        data[46:50] = colors.to_bytes(4, "little")
        decode(bytes(data))
    data[46:50] = (257).to_bytes(4, "little")
    with pytest.raises(PictureError, match="a BMP with more colours than it can use"):
        decode(bytes(data))


def bmp_of_run_lengths(width: int, height: int, runs: bytes) -> bytes:
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


def test_a_bmp_of_run_lengths_is_read():
    row = b"".join(bytes([2, level]) for level in range(200)) + b"\0\0"
    expected = decode(encode(Image.frombytes("L", (400, 300), bytes(i // 2 for i in range(400)) * 300)))
    assert (decode(bmp_of_run_lengths(400, 300, row * 300 + b"\0\1")) == expected).all()


@pytest.mark.parametrize(("side", "size"), [(2000, 10), (10, 3_000_000)])
def test_a_bmp_of_very_many_run_lengths_is_refused(side, size):
    data = bmp_of_run_lengths(side, side, bytes(size))
    with pytest.raises(PictureError, match="a run-length encoded BMP of more than 3000000 bytes or pixels"):
        decode(data, max_pixels=25_000_000)


@given(
    kind=st.sampled_from(sorted(PICTURES)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
)
def test_damage_gives_a_picture_or_a_picture_error(kind, changes):
    data = bytearray(PICTURES[kind])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    with contextlib.suppress(PictureError):
        assert decode(bytes(data)).shape == (8, 8, 3)


def test_damaged_metadata_do_not_reach_the_log(server, client):
    exif = oriented(6).tobytes()
    # Byte 10 belongs to the number of entries, of which there are then too few.
    damaged = exif[:10] + b"\xff" + exif[11:]
    with pytest.warns(UserWarning, match="EXIF"):
        Image.open(BytesIO(image := encode(noise("RGB"), "JPEG", exif=damaged))).getexif()
    response = client.post("/predict", files={"image": ("picture.jpg", image, "image/jpeg")})
    assert response.status_code == 200, response.text
    assert "EXIF" not in server.log.read_text()


# What decoding costs


@functools.cache
def kinds_of_cost() -> dict[str, bytes]:
    """Large pictures in all that makes a difference to the memory that decoding takes."""
    side = 1000
    flat = {mode: Image.new(mode, (side, side), 128) for mode in ("1", "L", "P", "I;16")}
    flat |= {mode: Image.new(mode, (side, side), (128,) * channels) for mode, channels in CHANNELS.items()}
    detailed = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)).resize((side, side))
    return {
        **{f"PNG {mode}": encode(image) for mode, image in flat.items() if mode != "CMYK"},
        **{f"turned PNG {mode}": encode(flat[mode], exif=oriented(6)) for mode in ("RGB", "RGBA", "I;16")},
        "PNG P transparent": encode(flat["P"], transparency=bytes(range(256))),
        "PNG RGB transparent": encode(flat["RGB"], transparency=(128, 128, 128)),
        "WEBP": encode(flat["RGB"], "WEBP", lossless=True),
        "WEBP RGBA": encode(flat["RGBA"], "WEBP", lossless=True, exact=True),
        "turned WEBP RGBA": encode(flat["RGBA"], "WEBP", lossless=True, exact=True, exif=oriented(6)),
        "lossy WEBP": encode(detailed, "WEBP", method=0, quality=10),
        "animated WEBP": encode(
            flat["RGBA"], "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGBA", (side, side))]
        ),
        "GIF": encode(flat["P"], "GIF", transparency=128),
        "BMP": encode(flat["RGB"], "BMP"),
        "JPEG": encode(detailed, "JPEG", subsampling=0),
        "progressive JPEG": encode(detailed, "JPEG", subsampling=0, progressive=True, exif=oriented(6)),
        "CMYK progressive JPEG": encode(flat["CMYK"], "JPEG", progressive=True),
        "tall PNG": encode(Image.new("RGB", (20, 60_000))),
        "wide PNG": encode(Image.new("RGB", (60_000, 20))),
    }


CHANNELS = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of the memory is Linux's")
@pytest.mark.parametrize("side", [64, 600])
def test_decoding_takes_no_more_memory_than_the_header_says(side):
    """In a separate process, whose C library returns memory as the server's does."""
    exceeded = subprocess.run(
        [sys.executable, "-c", PEAKS, str(side)], input=pickle.dumps(kinds_of_cost()), capture_output=True, cwd=ROOT
    )
    assert (exceeded.stdout.decode(), exceeded.stderr.decode()) == ("", "")


PEAKS = """
import pickle, re, sys
from pathlib import Path
from server import memory, picture

def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

memory.tighten()
for kind, data in pickle.load(sys.stdin.buffer).items():
    for _ in range(2 if kind.startswith(('PNG 1', 'turned')) else 1):  # The first time loads code.
        memory.trim()
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        opened = picture.Picture(data, height=int(sys.argv[1]), width=int(sys.argv[1]), max_pixels=25_000_000)
        estimated = opened.cost.bytes
        opened.decode()
        del opened
        taken = status("VmHWM") - before
    if not taken <= estimated <= 3 * taken + 8_000_000:
        print(kind, taken, estimated)
"""


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("JPEG", 0.15, 0.5), ("progressive JPEG", 0.5, 1), ("PNG RGB", 1, 1), ("PNG RGBA", 2, 2), ("WEBP", 2, 2)],
)
def test_the_cost_in_time_depends_on_the_format(kind, least, most):
    data = kinds_of_cost()[kind]
    cost = picture.Picture(data, height=8, width=8, max_pixels=25_000_000).cost
    assert least <= cost.pixels / 1000**2 <= most


def test_scans_cost_time():
    def cost(count: int) -> int:
        return picture.Picture(with_many_scans(count), height=8, width=8, max_pixels=25_000_000).cost.pixels

    assert 3 < cost(90) / 1000**2 < 6
    assert cost(90) > 4 * cost(10)


# Metadata that costs more than pixels


def text_chunk(kind: bytes, keyword: bytes, text: bytes) -> bytes:
    content = {
        b"tEXt": text,
        b"zTXt": b"\0" + zlib.compress(text),
        b"iTXt": b"\0\0en\0\0" + text,
        b"compressed iTXt": b"\1\0en\0\0" + zlib.compress(text),
    }
    return chunk(kind[-4:], keyword + b"\0" + content[kind])


TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt", b"compressed iTXt")
XMP = b"<x:xmpmeta><rdf:Description tiff:Orientation='1' %s/></x:xmpmeta>"
XMP_KEYWORD, PROFILE_KEYWORD = b"XML:com.adobe.xmp", b"Raw profile type exif"


def profile(exif: bytes) -> bytes:
    """Writes EXIF data as ImageMagick does."""
    digits = exif.hex().encode()
    return b"\nexif\n%8d\n" % len(exif) + b"\n".join(digits[i : i + 72] for i in range(0, len(digits), 72)) + b"\n"


def with_metadata(*chunks: bytes, place: str = "before") -> bytes:
    """Puts chunks before or after the pixels of a PNG."""
    whole = encode(noise("RGB"))
    at = 33 if place == "before" else len(whole) - 12
    return whole[:at] + b"".join(chunks) + whole[at:]


@pytest.mark.parametrize("place", ["before", "after"])
def test_texts_and_profiles_of_a_png_are_not_inflated(monkeypatch, place):
    bomb = "\N{GRINNING FACE}".encode() + b"a" * (2**20 - 4)
    chunks = [text_chunk(b"compressed iTXt", b"key %d" % i, bomb) for i in range(64)]
    chunks += [chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**20)))] * 100
    chunks += [chunk(b"zTXt", b"comment\0\0" + zlib.compress(b" " * 50_000_000))]
    data = with_metadata(*chunks, place=place)
    expected = decode(encode(noise("RGB")))
    monkeypatch.setattr("PIL.PngImagePlugin._safe_zlib_decompress", None)
    tracemalloc.start()
    try:
        assert (decode(data) == expected).all()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_png_with_ordinary_texts_and_a_profile_is_read():
    texts = [text_chunk(kind, b"exif:%d" % i, b"value " * i) for i in range(50) for kind in TEXT_KINDS]
    data = with_metadata(chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(3000))), *texts)
    served = decode(data)
    np.testing.assert_array_equal(served, training.decode(data, size=8, where="test"))
    np.testing.assert_array_equal(served, decode(encode(noise("RGB"))))


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    ("keyword", "text", "kinds"),
    [
        (XMP_KEYWORD, XMP % b'tiff:Orientation="6"', TEXT_KINDS),
        (XMP_KEYWORD, b"<tiff:Orientation>6</tiff:Orientation>" + b" " * 900_000, TEXT_KINDS),
        (PROFILE_KEYWORD, profile(oriented(6).tobytes()), TEXT_KINDS),
        (b"exif", oriented(6).tobytes(), [b"tEXt"]),
    ],
)
def test_the_orientation_in_a_text_of_a_png_counts(keyword, text, kinds, place):
    turned = decode(encode(noise("RGB").transpose(Image.Transpose.ROTATE_270)))
    for kind in kinds:
        data = with_metadata(text_chunk(kind, b"Title", b"a"), text_chunk(kind, keyword, text), place=place)
        np.testing.assert_array_equal(decode(data), training.decode(data, size=8, where="test"))
        np.testing.assert_array_equal(decode(data), turned)


@pytest.mark.parametrize(
    "texts",
    [
        [(XMP_KEYWORD, XMP % b'tiff:Orientation="6"'), (XMP_KEYWORD, XMP % b"")],
        [(XMP_KEYWORD, XMP % b""), (XMP_KEYWORD, XMP % b'tiff:Orientation="6"')],
        [(XMP_KEYWORD, XMP % b'tiff:Orientation="3"'), (PROFILE_KEYWORD, profile(oriented(6).tobytes()))],
        [(PROFILE_KEYWORD, b"nonsense")],
        [(XMP_KEYWORD, b"")],
        [(b"exif", b"")],
    ],
)
def test_of_several_texts_of_a_png_the_same_one_counts_as_in_training(texts):
    for kind in TEXT_KINDS:
        data = with_metadata(*(text_chunk(kind, keyword, text) for keyword, text in texts))
        np.testing.assert_array_equal(decode(data), training.decode(data, size=8, where="test"))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
@pytest.mark.parametrize(
    "head", [b"", b"\0", b"\0\0", b"\0\0en\0", b"\0\0\0\0", b"\0\5\0\0", b"\1\0\0\0", b"\1\1\0\0", b"\7\0\0\0"]
)
def test_a_damaged_text_of_a_png_says_what_it_says_in_training(kind, head):
    text = XMP % b'tiff:Orientation="6"'
    for content in (text, zlib.compress(text), zlib.compress(text)[:-9]):
        data = with_metadata(chunk(kind, XMP_KEYWORD + b"\0" + head + content))
        with contextlib.suppress(UserError):  # Training is stricter, at most.
            expected = training.decode(data, size=8, where="test")
            np.testing.assert_array_equal(decode(data), expected)


def test_what_follows_a_png_is_not_looked_at():
    assert (decode(encode(noise("RGB")) + bytes(500_000)) == decode(encode(noise("RGB")))).all()


def test_a_png_of_many_texts_with_an_orientation_is_refused():
    text = text_chunk(b"compressed iTXt", XMP_KEYWORD, XMP % b"")
    assert decode(with_metadata(*[text] * 10)).shape == (8, 8, 3)
    with pytest.raises(PictureError, match="far too much metadata: save it again with another program"):
        decode(with_metadata(*[text] * 11))


def test_open_pngs_hold_little_of_what_their_texts_inflate_to():
    text = text_chunk(b"zTXt", PROFILE_KEYWORD, b"a" * 2**20)
    tracemalloc.start()
    try:
        opened = [open_picture(with_metadata(text)) for _ in range(32)]
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert opened[0].decode().shape == (8, 8, 3)
    assert decode(with_metadata(text, text)).shape == (8, 8, 3)
    with pytest.raises(PictureError, match="far too much metadata: save it again with another program"):
        decode(with_metadata(text, text, text))  # Ten of them in each of 32 pictures take 70 MB.


@pytest.mark.parametrize("tag", [0x0112, 0x9000])
def test_exif_data_of_very_many_values_or_entries_in_a_png_are_not_decoded(tag):
    many = exif_of_rationals(tag, 12_000) if tag == 0x0112 else exif_of_entries(8000)
    for part in (text_chunk(b"zTXt", PROFILE_KEYWORD, profile(many)), chunk(b"eXIf", many)):
        data = with_metadata(part)
        decode(data)
        start = time.process_time()
        assert (decode(data) == decode(encode(noise("RGB")))).all()
        assert time.process_time() - start < 0.02  # Pillow takes 40 ms or more.


def exif_of_entries(count: int) -> bytes:
    """Builds EXIF data of `count` tags with one value each."""
    table = b"".join(struct.pack("<HHLL", 0x8000 + i, 4, 1, i) for i in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + table + bytes(4)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def with_segments(*segments: bytes) -> bytes:
    """Puts segments first into a JPEG."""
    whole = encode(noise("RGB"), "JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def pictures_segment(count: int) -> bytes:
    """Builds the table of a multi-picture file, which has `count` tags of 7,000 fractions."""
    table = b"".join(struct.pack("<HHLL", 0xB000 + i, 5, 7000, 14 + 12 * count) for i in range(count))
    return segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", count) + table + bytes(4) + bytes(56_000))


@pytest.mark.parametrize(
    ("one", "count"),
    [
        (segment(0xE0, b""), 5000),
        (segment(0xDB, (b"\0" + bytes(range(1, 65))) * 1000), 10),
        (segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4" + bytes(6)) * 5000), 2),
        (pictures_segment(1), 1),
    ],
    ids=["segments", "tables", "resources", "pictures"],
)
def test_a_jpeg_of_very_many_parts_is_refused(one, count):
    with pytest.raises(PictureError, match="far too many chunks"):
        decode(with_segments(*[one] * count))


def test_a_jpeg_of_very_many_exif_entries_is_refused():
    assert decode(jpeg_with_exif(exif_of_entries(1000))).shape == (8, 8, 3)
    with pytest.raises(PictureError, match="far too many chunks"):
        decode(jpeg_with_exif(exif_of_entries(5000)))


def test_a_jpeg_of_millions_of_segments_is_refused_at_once():
    data = b"\xff\xd8" + segment(0xE0, b"") * 2_600_000
    start = time.process_time()
    with pytest.raises(PictureError, match="far too many chunks"):
        decode(data)
    assert time.process_time() - start < 0.2  # To walk over all takes two seconds.


def test_a_jpeg_with_the_metadata_of_programs_is_read():
    resources = segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4" + bytes(6)) * 50)
    data = with_segments(resources, segment(0xFE, b"comment"), *[segment(0xE2, bytes(65_000))] * 20)
    np.testing.assert_array_equal(decode(data), training.decode(data, size=8, where="test"))


@pytest.mark.parametrize(
    "start",
    [
        b"\xff\xd8\xff\xd9\xff\xd8",
        b"\xff\xd8\xff\xd8",
        b"\xff\xd8" + segment(0xF0, bytes(10)),
        b"\xff\xd8" + segment(0xC8, bytes(10)),
        b"\xff\xd8" + segment(0xC0, struct.pack(">BHHB", 8, 16, 16, 1) + b"\1\x11\0"),
    ],
    ids=["end", "start", "extension", "reserved", "frame"],
)
def test_a_jpeg_whose_markers_hide_others_is_refused(start):
    data = encode(noise("RGB"), "JPEG")
    with pytest.raises(PictureError, match="a damaged JPEG: save it again with another program"):
        decode(start + data[2:])
    with pytest.raises(PictureError, match="a damaged JPEG"):
        decode(start + with_many_scans(101)[2:])
