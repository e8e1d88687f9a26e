"""A picture becomes the same pixels everywhere: in the cache, predictions, the server, its page and the card's code."""

import base64
import json
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from pictures import encode, make_picture
from PIL import Image, ImageOps

import jaxcnn.data
from export.card import TELEMETRY, USAGE
from jaxcnn.config import DataConfig
from jaxcnn.data.resize import STRETCH, Resize, centre
from jaxcnn.prediction import to_input
from server import model as serving
from server.protocols.native import decode_pictures
from server.settings import Settings
from tests.server.conftest import build_model

ROOT = Path(__file__).parents[1]
WANTED = SimpleNamespace(is_wanted=lambda: True, check_cost=lambda cost: None)
"""A request that somebody waits for, of any cost."""
SIZE = 16
FITS = {
    "stretch": DataConfig(image_size=SIZE),
    "stretch bilinear": DataConfig(image_size=SIZE, filter="bilinear"),
    "crop": DataConfig(image_size=SIZE, fit="crop"),
    "crop by an odd number": DataConfig(image_size=SIZE, fit="crop", crop=16 / 21),
    "crop all": DataConfig(image_size=SIZE, fit="crop", crop=1.0, filter="bilinear"),
    "pad": DataConfig(image_size=SIZE, fit="pad"),
    "pad bilinear": DataConfig(image_size=SIZE, fit="pad", filter="bilinear"),
}


class Case(NamedTuple):
    """A picture, and how it becomes a square."""

    name: str
    fit: str
    is_tall: bool


NODE = """
import { readFileSync } from "node:fs";
import { fit } from "./fit.js";
const results = JSON.parse(readFileSync(0, "utf8")).map(({ rgba, width, height, model }) => {
  const data = new Uint8ClampedArray(Buffer.from(rgba, "base64"));
  return Buffer.from(fit({ data, width, height }, model)).toString("base64");
});
console.log(JSON.stringify(results));
"""


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture with detail of every size, and all colours if `mode` has them."""
    drawn = make_picture(3, seed=1, size=max(width, height)).crop((0, 0, width, height))
    if mode == "RGBA":
        drawn.putalpha(Image.linear_gradient("L").resize(drawn.size))
    return drawn.convert(mode)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PICTURES = {
    "one_pixel.png": encode(picture(1, 1)),
    "line.png": encode(picture(200, 1)),
    "tiny.png": encode(picture(3, 5)),
    "of_the_size.png": encode(picture(SIZE, SIZE)),
    "wide.png": encode(picture(90, 37)),
    "tall.png": encode(picture(41, 132)),
    "half.png": encode(picture(17, 10)),
    "alpha.png": encode(picture(50, 33, "RGBA")),
    "gray.png": encode(picture(33, 50, "L")),
    "gray_alpha.png": encode(picture(33, 50, "RGBA").convert("LA")),
    "palette.png": encode(picture(60, 40).quantize(16), transparency=3),
    **{f"turned_{i}.png": encode(picture(47, 30), exif=turned(i)) for i in range(2, 9)},
    "small.jpg": encode(picture(60, 45), "JPEG", exif=turned(6)),
    **{f"huge_{i}.jpg": encode(picture(611, 405), "JPEG", quality=90, exif=turned(i)) for i in (1, 3, 6, 7)},
    "huge_tall.jpg": encode(picture(203, 1111), "JPEG"),
    "huge_gray.jpg": encode(picture(405, 611, "L"), "JPEG", exif=turned(8)),
    "huge_cmyk.jpg": encode(picture(405, 611).convert("CMYK"), "JPEG", exif=turned(5)),
}
HALVED = {name for name in PICTURES if name.startswith("huge")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the pictures as a class, beside one of another class."""
    path = tmp_path_factory.mktemp("pictures")
    for name in ("some", "zero"):
        (path / name).mkdir()
    for name, content in PICTURES.items():
        (path / "some" / name).write_bytes(content)
    (path / "zero" / "0.png").write_bytes(PICTURES["tiny.png"])
    return path


@pytest.mark.parametrize("fit", FITS)
def test_pixels_are_the_same_in_the_cache_predictions_the_server_and_the_cards_code(folder, tmp_path, fit):
    config, resize = FITS[fit], Resize.of(FITS[fit])
    # The file as exported, without a side unless it is cropped.
    values = {key: value for key, value in vars(resize).items() if value is not None}
    path = build_model(tmp_path / "model.onnx", side=SIZE, metadata={"image_size": [SIZE, SIZE], "resize": values})
    served = serving.load(path, max_batch=2, threads=1)
    dataset = jaxcnn.data.load(
        DataConfig(**vars(config) | {"source": str(folder), "cache_dir": str(tmp_path / "cache")}), hold_out=False
    )
    names = sorted(PICTURES)
    cached = dict(zip(names, dataset.train.shown[:], strict=False))
    for name in names:
        predicted = to_input(str(folder / "some" / name), size=SIZE, resize=resize, where=name)
        np.testing.assert_array_equal(predicted, cached[name], name)
        (answered,) = decode_pictures([("", PICTURES[name])], served, Settings(), WANTED)
        np.testing.assert_array_equal(answered, cached[name], name)
        np.testing.assert_array_equal(run_card(path, folder / "some" / name), cached[name], name)
        if name not in HALVED:
            opened = Image.open(BytesIO(PICTURES[name]))
            np.testing.assert_array_equal(to_input(opened, size=SIZE, resize=resize, where=name), cached[name], name)


def run_card(model: Path, photo: Path) -> np.ndarray:
    """Runs the code of the card, and returns the picture that it gives to the model."""
    found: dict[str, object] = {}
    exec(USAGE.replace("{file}", str(model)).replace("photo.jpg", str(photo)), found)
    return np.asarray(found["image"])


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node: `apt-get install nodejs`")
def test_the_page_computes_the_same_pixels(tmp_path):
    for name in ("fit.js", "resize.js"):
        shutil.copy(ROOT / "server" / "page" / name, tmp_path / name)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "all.js").write_text(NODE)
    cases, questions, expected = [], [], []
    # A canvas decodes JPEGs whole; it has no transparency, and is upright.
    for name in sorted(PICTURES.keys() - HALVED):
        image = ImageOps.exif_transpose(Image.open(BytesIO(PICTURES[name]))).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        for fit, config in FITS.items():
            cases.append(Case(name, fit, is_tall=image.height > image.width))
            resize = Resize.of(config)
            model = {"width": SIZE, "height": SIZE, "resize": vars(resize)}
            rgba = base64.b64encode(image.tobytes()).decode()
            questions.append({"rgba": rgba, "width": image.width, "height": image.height, "model": model})
            expected.append(to_input(image.convert("RGB"), size=SIZE, resize=resize, where=name))
    asked = subprocess.run(
        ["node", "all.js"], cwd=tmp_path, input=json.dumps(questions), capture_output=True, text=True, check=True
    )
    found = [np.frombuffer(base64.b64decode(text), np.uint8) for text in json.loads(asked.stdout)]
    # Pillow may resize the columns of a tall picture before its rows, and rounds in between.
    for pixels, wanted, case in zip(found, expected, cases, strict=True):
        difference = np.abs(pixels.reshape(SIZE, SIZE, 3).astype(int) - wanted)
        assert difference.max() <= case.is_tall, case


def test_the_readme_has_the_code_of_the_card():
    readme = (ROOT / "export" / "README.md").read_text()
    assert USAGE.replace("{file}", "classifier.onnx") in readme
    assert TELEMETRY in " ".join(readme.split())


def test_a_crop_shows_the_middle_as_torchvision_does():
    image = picture(90, 36)
    scaled = image.resize((50, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled.crop((17, 2, 33, 18)))
    found = to_input(image, size=16, resize=Resize(mode="crop", side=20), where="x")
    np.testing.assert_array_equal(found, expected)


def test_a_padded_picture_keeps_its_shape_between_gray_bars():
    found = to_input(picture(64, 20), size=16, resize=Resize(mode="pad"), where="x")
    inside = np.asarray(picture(64, 20).resize((16, 5), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found[5:10], inside)
    assert (found[:5] == 127).all()
    assert (found[10:] == 127).all()


def test_stretching_is_what_earlier_versions_did():
    image = picture(90, 37)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(to_input(image, size=16, where="x"), expected)
    assert Resize.of(DataConfig(image_size=127)) == STRETCH


@pytest.mark.parametrize(("stored", "shown", "start"), [(256, 224, 16), (21, 16, 3), (20, 16, 2), (16, 16, 0)])
def test_the_middle_is_where_the_scaled_picture_is_placed(stored, shown, start):
    assert centre(stored, shown) == slice(start, start + shown)
    assert -start == (shown - stored) // 2
