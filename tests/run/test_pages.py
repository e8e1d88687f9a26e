"""The pages of runs and pictures in a real Chromium: no errors, no network, nothing wider than the screen."""

import re
import shutil
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright
from recorded_runs import write_run

from jaxcnn.calibration import Calibration
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.data import Dataset, Split, load
from jaxcnn.inspect import main as inspect
from jaxcnn.metrics import score, summarize
from jaxcnn.run.comparison import compare
from jaxcnn.run.comparison_files import to_html
from jaxcnn.run.recorded import find_runs
from jaxcnn.run.report import write_report
from jaxcnn.run.workdir import Classes, Workdir

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: `apt-get install chromium`")

SCREENS = {
    "desktop": {"width": 1280, "height": 800},
    "tablet": {"width": 656, "height": 900},
    "phone": {"width": 360, "height": 740},
}
HEBREW = "\N{HEBREW LETTER QOF}\N{HEBREW LETTER VAV}\N{HEBREW LETTER FINAL PE}"
LONG = "a class with a name that is much longer than anybody would expect of a class"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        it = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield it
        it.close()


@pytest.fixture
def check(browser):
    """Opens a page on each screen; checks at the end that none logged an error or asked for anything but itself."""
    complaints: list[str] = []

    def go(path: Path) -> Page:
        for screen in SCREENS.values():
            page = browser.new_context(viewport=screen).new_page()
            page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: note(request.url, path))
            page.goto(path.as_uri())
            for summary in page.locator("summary").all():
                summary.click()
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= screen["width"], f"{path.name} is {width} pixels wide"
            assert page.locator("[role=img][aria-label] svg").count() == page.locator("svg").count()
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        return page

    def note(url: str, path: Path) -> None:
        if url != path.as_uri() and not url.startswith("data:"):
            complaints.append(url)

    yield go
    assert complaints == []


def find_target(link: Locator) -> Path:
    """Returns the file that a link leads to."""
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(link.evaluate("link => link.href")).path))


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Class folders with a leak and a contradiction."""
    monkeypatch.chdir(tmp_path)
    for number, (split, name) in enumerate((split, name) for split in ("train", "val") for name in ("cat", LONG)):
        folder = tmp_path / "pets" / split / name
        folder.mkdir(parents=True)
        for i in range(4):
            coarse = np.random.default_rng(10 * number + i).integers(0, 256, (7, 9, 3), np.uint8)
            Image.fromarray(coarse).resize((96, 72)).save(folder / f"{'very-' * 20}long-{i}.png")
    names = sorted((tmp_path / "pets" / "train" / "cat").iterdir())
    shutil.copy(names[0], tmp_path / "pets" / "val" / "cat" / "copy.png")
    shutil.copy(names[1], tmp_path / "pets" / "train" / LONG / "copy.png")
    (tmp_path / "pets" / "train" / "cat" / "broken.png").write_bytes(b"nothing")
    return tmp_path / "pets"


def test_the_page_about_a_folder(check, pets):
    (pets / "train" / "cat" / HEBREW).mkdir()
    (pets / "train" / "cat" / HEBREW / f"{HEBREW} 1.png").write_bytes(b"nothing")
    inspect(["pets", "--page", "page.html"])
    page = check(pets.parent / "page.html")
    assert page.locator("figure").count() == 2 + 2
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight])")
    assert sizes == 4 * [[128, 96]]
    links = [find_target(link) for link in page.locator("figure a").all()]
    assert pets / "val" / "cat" / "copy.png" in links
    assert all(file.exists() for file in links)
    assert page.get_by_text("broken.png is not a picture that can be read").count() == 1
    # Folders that are written from right to left stay before their files.
    parts = page.locator("li bdi", has_text=re.compile(f"^(train|{HEBREW})")).all()
    assert [part.inner_text() for part in parts[-3:]] == ["train", HEBREW, f"{HEBREW} 1.png"]
    places = [part.bounding_box()["x"] for part in parts[-3:]]
    assert places == sorted(places)


@pytest.mark.run
def test_the_report(check, pets, tmp_path):
    (pets / "train" / "cat" / "broken.png").unlink()
    config = Config(
        data=DataConfig(source="pets", cache_dir=str(tmp_path / "cache"), image_size=32, allow_leaks=True),
        model=ModelConfig(widths=(4,), blocks=(0,)),
    )
    dataset = load(config.data)
    workdir = tmp_path / "run"
    Workdir(workdir).record(config, Classes(dataset.names, (), dataset.name, dataset.license))
    # Every other picture is classified wrongly, some of them surely enough to doubt the label.
    labels = dataset.validation.labels
    logits = np.full((len(labels), 2), -3, np.float32)
    logits[np.arange(len(labels)), (labels + np.arange(len(labels)) % 2) % 2] = 3
    evaluation = summarize([score(logits, labels, np.ones(len(labels), bool))], classes=2)
    calibration = Calibration(step=3, temperature=1.5, count=len(labels), ece_before=0.2, ece_after=0.1)
    page = check(write_report(workdir, evaluation, dataset, calibration=calibration))
    for heading in ("Likely wrong labels", "Hardest pictures of each class", "Most confident mistakes"):
        section = page.locator("section", has=page.get_by_role("heading", name=heading))
        files = [find_target(link) for link in section.locator("figure a").all()]
        assert len(files) >= 2, heading
        assert all(file.exists() and file.is_relative_to(pets / "val") for file in files)


@pytest.fixture
def report(tmp_path):
    """Writes the report of a run that is right on every class, except the second, which it takes for the first."""

    def write(classes: int, name: str = "class") -> Path:
        labels = np.repeat(np.arange(classes, dtype=np.int32), 2)
        pictures = Split(np.zeros((len(labels), 8, 8, 3), np.uint8), labels)
        names = tuple(f"{name} {label}" for label in range(classes))
        dataset = Dataset(name="pets", names=names, wnids=(), license="", train=pictures, validation=pictures)
        config = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(0,)))
        Workdir(tmp_path).record(config, Classes(names, (), dataset.name, dataset.license))
        right = np.arange(classes) == np.where(labels == 1, 0, labels)[:, None]
        logits = np.where(right, 3, -3).astype(np.float32)
        evaluation = summarize([score(logits, labels, np.ones(len(labels), bool))], classes=classes)
        calibration = Calibration(step=3, temperature=1.5, count=len(labels), ece_before=0.2, ece_after=0.1)
        return write_report(tmp_path, evaluation, dataset, calibration=calibration)

    return write


@pytest.mark.run
def test_a_cell_of_many_classes_is_read_by_a_tap(browser, report):
    page = browser.new_context(has_touch=True).new_page()
    page.goto(report(26).as_uri())
    page.locator("#map img").tap(position={"x": 1, "y": 1})
    expect(page.locator("#map output")).to_have_text(
        re.compile(r"^True class class \d+, predicted class \d+: [02] of 2$")
    )


@pytest.mark.run
def test_every_cell_of_a_thousand_classes_is_drawn_and_can_be_read(check, report):
    """A map that is smaller than its pixels would lose the mistakes of some classes: they are one pixel each."""
    page = check(report(1000))  # On a phone, the map is scrolled; the page is no wider.
    box = page.locator("#map img").bounding_box()
    assert (box["width"], box["height"]) == (1000, 1000)
    # All classes are right but one, all of whose pictures are another: a cell beside the diagonal.
    page.set_viewport_size({"width": 1280, "height": 1200})
    mistake = page.evaluate("cells.find(([row, column]) => row !== column)")
    page.locator("#map").evaluate("map => map.scrollIntoView({block: 'center'})")
    box = page.locator("#map img").bounding_box()
    page.mouse.move(round(box["x"]) + mistake[1], round(box["y"]) + mistake[0])
    expect(page.locator("#map output")).to_have_text("True class class 1, predicted class 0: 2 of 2")


@pytest.mark.run
@pytest.mark.parametrize("classes", [3, 26])
def test_a_long_word_does_not_widen_the_report(check, report, classes):
    check(report(classes, name="long" * 40))


@pytest.mark.run
def test_numbers_stay_beside_names_that_run_from_right_to_left(check, report):
    counts = check(report(3, name="\N{ARABIC LETTER QAF}\N{ARABIC LETTER TAH}")).locator(".list td .muted")
    assert counts.all_inner_texts() == ["2\N{MULTIPLICATION SIGN}"]
    # A count that runs with the name before it is torn apart.
    assert counts.evaluate("it => it.getClientRects().length") == 1


@pytest.mark.run
def test_the_numbers_of_the_confusion_matrix_stand_out(browser, report):
    path = report(3)
    for scheme in ("light", "dark"):
        page = browser.new_context(color_scheme=scheme).new_page()
        page.goto(path.as_uri())
        for selector in (".bars .bar", ".bars .bar span", ".matrix td.right"):
            adjust = page.locator(selector).first.evaluate("it => getComputedStyle(it).printColorAdjust")
            assert adjust == "exact", selector
        cells = page.locator(".matrix td.right, .matrix td.wrong")
        assert cells.all_inner_texts() == ["2", "2", "2"]
        for cell in cells.all():
            style = [cell.evaluate(f"it => getComputedStyle(it).{name}") for name in ("color", "backgroundColor")]
            dark, bright = sorted(map(luminance, style))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (scheme, style)


def luminance(colour: str) -> float:
    """Returns the relative luminance of a CSS colour, as WCAG defines it."""
    channels = [float(level) for level in re.findall(r"[\d.]+", colour)[:3]]
    if not colour.startswith("color(srgb"):
        channels = [level / 255 for level in channels]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_comparison(check, tmp_path):
    write_run(tmp_path / "runs" / "best", note=LONG)
    write_run(tmp_path / "runs" / "other", answers="d" * 7 + "c" + "d" * 8, learning_rate=0.3)
    page = tmp_path / "comparison.html"
    page.write_text(to_html(compare(find_runs([tmp_path / "runs"]))))
    assert check(page).locator("svg").count() >= 2
