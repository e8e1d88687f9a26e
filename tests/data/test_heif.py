"""HEIC pictures, with and without the package that reads them."""

import base64
import io
import re
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import encode, make_picture
from PIL import Image

from jaxcnn.bulk.picture_files import find_pictures
from jaxcnn.data.crops import Crop
from jaxcnn.data.decoding import decode, decode_crop, decode_file, is_picture
from jaxcnn.data.heif import is_heif
from jaxcnn.data.sources.folder import folder_source
from jaxcnn.errors import UserError
from jaxcnn.extras import install_command
from server import picture as serving
from server.errors import PictureError

PHOTO = base64.b64decode(
    """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA
AAAERAAAIAAQAAAAAB7AABAAAAAAAAAFEAAgAAAAACPQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp
bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGE
ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA
AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEH
BpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAH1tZGF0AAAA
TSgBrxOA5TH2z1IT/xC0/ssmZOoMQv/H/Pui8v6TQsQbknFdT/79V8fGro/5sEoXTtS+oK6ogb9izmbI6i41FFRPELu1Wt1nAfEUUGeyAAAABk
V4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA
    """
)
"""48x64 pixels as a viewer shows them: blue, the upper right quarter orange. The file holds 64x48 pixels that are to be
turned, as by a phone that was held upright, and says so twice: in HEIF's own property and in its EXIF orientation."""

FILM = b"\0\0\0\x18ftypmp42\0\0\0\0isomhvc1" + bytes(100)


@pytest.fixture
def reader():
    """The package that reads HEIC."""
    return pytest.importorskip("pillow_heif")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PHOTO, True),
        (PHOTO.replace(b"ftypheic\0\0\0\0mif1", b"ftypmif1\0\0\0\0MiHE"), True),
        (PHOTO[:12], True),
        (PHOTO[:11], False),
        (FILM, False),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp41heic", False),  # behind the brands
        (encode(make_picture(0, seed=0), "AVIF"), False),
        (b"", False),
    ],
)
def test_a_file_is_heic_by_its_brands(content, expected):
    assert is_heif(content) == expected
    assert not expected or is_picture(content)


def test_a_heic_file_without_its_package_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("cat/1.jpg", "cat/2.HEIC", "cat/IMG_3", "dog/1.png", "dog/film"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(FILM if name == "dog/film" else PHOTO)
    found = folder_source(str(tmp_path)).open()
    # No HEIC file is passed over, whatever its name, so that none is missing in a training.
    assert [file for file, _ in found.train.listed()] == ["cat/1.jpg", "cat/2.HEIC", "cat/IMG_3", "dog/1.png"]
    assert found.passed_over == ("dog/film",)
    message = f"cat/1.jpg is HEIC, which needs pillow-heif; run: {install_command('heic')}, or make a JPEG of it"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        decode(PHOTO, size=8, where="cat/1.jpg")
    expected = {file.name.rpartition("/")[2]: file.expected for file in find_pictures([str(tmp_path / "cat")], [])[0]}
    assert expected == {"1.jpg": True, "2.HEIC": True, "IMG_3": False}


def test_a_heic_picture_is_turned_once(reader):
    found = decode_file(PHOTO, size=8, where="x")
    assert (found.width, found.height, found.format) == (48, 64, "HEIF")
    orange = np.zeros((8, 8), bool)
    orange[:3, 5:] = True
    blue = np.zeros((8, 8), bool)
    blue[:, :3] = blue[5:] = True
    for place, colour in ((orange, (240, 120, 30)), (blue, (40, 120, 200))):
        assert np.abs(found.pixels[place].astype(int) - colour).max() <= 8
    crop = Crop(draws=np.array([0, 0.5, 0.5, 0.5]), area=(1.0, 1.0))
    assert decode_crop(PHOTO, crop, size=8, where="x").shape == (8, 8, 3)


def test_threads_decode_heic_alike(reader):
    expected = decode(PHOTO, size=8, where="x")
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(lambda _: decode(PHOTO, size=8, where="x"), range(40)):
            assert (pixels == expected).all()


def test_a_thumbnail_in_a_heic_file_is_not_taken_for_it(reader, monkeypatch):
    """pillow-heif decodes it for Pillow's `draft`, if it is as large as is asked for."""
    monkeypatch.setattr(reader.HeifImageFile, "draft", lambda *_: pytest.fail("a thumbnail may be decoded"))
    decode(PHOTO, size=8, where="x")


def test_a_heic_bomb_is_refused_by_its_header(reader):
    """The header says 64x64, of which a viewer shows 64x48: the bomb would also look small."""
    size = b"ispe" + struct.pack(">III", 0, 64, 64)
    assert PHOTO.count(size) == 1
    bomb, largest = (PHOTO.replace(size, b"ispe" + struct.pack(">III", 0, side, side)) for side in (8945, 8944))
    assert reader.open_heif(bomb).size == (48, 64)
    with pytest.raises(UserError, match=r"^x has more than 80,000,000 pixels; make it smaller or remove it$"):
        decode(bomb, size=8, where="x")
    with pytest.raises(UserError, match=r"not a picture that can be read .*size"):  # that of its pixels
        decode(largest, size=8, where="x")


@pytest.mark.parametrize("kept", [12, 100, 300, len(PHOTO) - 10])
def test_a_truncated_heic_file_is_refused(reader, kept):
    with pytest.raises(UserError, match=r"^x is not a picture that can be read \(.*\); repair or remove it$"):
        decode(PHOTO[:kept], size=8, where="x")


def test_the_server_refuses_heic_even_where_pillow_reads_it(reader, monkeypatch):
    monkeypatch.setitem(Image.OPEN, "HEIF", (reader.HeifImageFile, None))
    assert Image.open(io.BytesIO(PHOTO), formats=["HEIF"]).size == (48, 64)
    with pytest.raises(PictureError, match="send JPEG, PNG, WebP, GIF or BMP"):
        serving.Picture(PHOTO, height=8, width=8, max_pixels=10**6)
