"""The report: what it reads, what it shows, and that untrusted text is escaped in it."""

import base64
import dataclasses
import functools
import io
import json
import math
import pickle
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from log_lines import LINES, train_record
from PIL import Image

from jaxcnn.calibration import Calibration
from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig
from jaxcnn.data import Dataset, Split
from jaxcnn.data.split import facts_type
from jaxcnn.errors import UserError
from jaxcnn.label_errors import find_hardest, find_label_errors
from jaxcnn.metrics import score, summarize
from jaxcnn.models import registry
from jaxcnn.run import charts, report, workdir
from jaxcnn.run.earlier_trainings import Training, record_earlier
from jaxcnn.run.environment import environment
from jaxcnn.run.report import write_report
from jaxcnn.run.sessions import record_session
from jaxcnn.run.workdir import Classes, Workdir

CONFIG = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(1,)), batch_size=4, epochs=3)
CLASSES = Classes(("a", "b", "c"), (), "my set", "MIT")
CALIBRATION = Calibration(step=30, temperature=1.375, count=40, ece_before=0.321, ece_after=0.123)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" ' & $x$ {{ 7 * 7 }}"


def drawn_once(draw):
    """Returns a function that keeps its results by the contents of the arguments."""
    drawn = {}

    def look_up(*arguments, **options):
        key = pickle.dumps((arguments, options))
        if key not in drawn:
            drawn[key] = draw(*arguments, **options)
        return drawn[key]

    return look_up


KEPT = {
    "count_parameters": functools.cache(report.count_parameters),
    "draw_curves": drawn_once(report.draw_curves),
    "draw_reliability": drawn_once(report.draw_reliability),
}


@pytest.fixture(autouse=True)
def made_once(monkeypatch):
    """Tracing the model and drawing take most of the time of a page, and the tests share a few models and charts."""
    for name, function in KEPT.items():
        monkeypatch.setattr(report, name, function)


def make_dataset(names, *, count=40, side=8):
    rng = np.random.default_rng(0)

    def split(count):
        images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        return Split(images, rng.integers(0, len(names), count, np.int32))

    return Dataset(name="my set", names=tuple(names), wnids=(), license="MIT", train=split(50), validation=split(count))


def measure(dataset, *, skill=1.0):
    """An evaluation of random logits; the larger the skill, the more are right."""
    labels, classes = dataset.validation.labels, len(dataset.names)
    logits = np.random.default_rng(1).normal(size=(len(labels), classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += np.float32(skill)
    return summarize([score(logits, labels, np.ones(len(labels), bool))], classes=classes)


def write(workdir, names, *, lines=LINES, skill=1.0, config=CONFIG, calibration=CALIBRATION, **options):
    """The page of a run on generated pictures, and the evaluation in it."""
    dataset = make_dataset(names, **options)
    Workdir(workdir).record(config, Classes(dataset.names, (), dataset.name, dataset.license))
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    evaluation = measure(dataset, skill=skill)
    path = write_report(workdir, evaluation, dataset, calibration=calibration)
    assert path == workdir / "report.html"
    return path.read_text(encoding="utf-8"), evaluation, dataset


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and the text of each cell of the confusion matrix."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.scripts, self.matrix = [], [], [], []
        self._open = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append((tag, dict(attributes)))
        if self._in_matrix() and tag == "tr":
            self.matrix.append([])
        if self._in_matrix() and tag == "td":
            self.matrix[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, text):
        tag = self._open[-1][0] if self._open else ""
        if tag == "script":
            self.scripts.append(text)
        elif tag != "style":
            self.words.append(text)
        if self._in_matrix() and tag == "td":
            self.matrix[-1][-1] += text.strip()

    def _in_matrix(self):
        return any(attributes.get("class") == "matrix" for _, attributes in self._open)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def decode(source):
    return Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))


@pytest.mark.parametrize("count", [1, 200, 201, 1999])
def test_long_curves_are_averaged(count):
    values = np.random.default_rng(0).normal(size=count)
    records = [train_record(i, loss=float(value)) for i, value in enumerate(values)]
    averaged = report.average_records(records)
    assert math.ceil(min(count, 200) / 2) <= len(averaged) <= 200
    assert averaged[0]["loss"] == pytest.approx(values[: math.ceil(count / 200)].mean())


def test_the_page_shows_what_was_measured(tmp_path):
    html, evaluation, _ = write(tmp_path, "abcdefg")
    page = Page(html)
    assert f"The model classifies {100 * evaluation.top1:.1f}% of 40 held-out pictures correctly" in page.text
    assert "from epoch 3 of 3" in page.text
    for figure in (f"{100 * evaluation.top5:.1f}%", f"{evaluation.loss:.3f}", f"{100 * evaluation.ece:.1f}%"):
        assert figure in page.text
    for fact in (
        "50 training and 40 validation pictures in 7 classes",
        "3 epochs of 12 steps",
        "sgd, learning rate 0.1",
    ):
        assert fact in page.text
    assert "6 s in training steps, 20 pictures/s" in page.text
    assert "Finished 09 September 2001, 01:46 UTC" in page.text
    model = registry.build(CONFIG.model, classes=7)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))["params"]
    assert "resnet, stages of 4 channels" in page.text
    assert f", {sum(leaf.size for leaf in jax.tree.leaves(shapes)):,} parameters" in page.text
    assert '"weight_decay"' in page.text
    assert "The logits are divided by a temperature of 1.38" in page.text
    assert "Without it, the calibration error would be 32.1%" in page.text
    assert "both ways, it is 12.3%" in page.text


def test_the_page_of_a_frozen_run_has_no_settings_of_steps(tmp_path):
    frozen = dataclasses.replace(CONFIG, init_from="a", freeze="backbone", augment=AugmentConfig(flip=True))
    text = Page(write(tmp_path, "ab", config=frozen, lines=[])[0]).text
    assert "no training steps: all but the classifier is frozen, 8x8 pixels" in text
    for heading in ("Optimizer", "Augmentation", "Learning curves"):
        assert heading not in text
        assert heading in Page(write(tmp_path / "steps", "ab")[0]).text


def test_the_page_says_where_the_initial_weights_come_from(tmp_path):
    assert "Initial weights" not in Page(write(tmp_path, "ab")[0]).text
    weights = {"weights": "pets 3.1 on PyPI, pets.pth, sha256 abc", "warning": "it has seen them"}
    earlier = [Training("Pets-4", "weights: MIT", weights), Training("pets", "", {}), Training("pets", "", {})]
    record_earlier(earlier, Workdir(tmp_path).earlier_trainings)
    first = "trained on Pets-4 (weights: MIT; pets 3.1 on PyPI, pets.pth, sha256 abc; it has seen them)"
    assert f"Initial weights {first}, then trained on pets " in Page(write(tmp_path, "ab")[0]).text


def test_the_page_shows_the_precision_that_was_used(tmp_path, monkeypatch):
    auto = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, precision="auto"))
    monkeypatch.setattr(registry, "resolve_precision", lambda precision: "bfloat16")
    page = Page(write(tmp_path, "abc", config=auto)[0])
    assert re.search(r"[\d,]+ parameters, bfloat16 Training", page.text)


def test_counts_of_one_are_singular(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "environment", lambda: environment() | {"cores": "1"})
    page = Page(write(tmp_path, "ab", config=dataclasses.replace(CONFIG, epochs=1), count=1)[0])
    assert "% of 1 held-out picture correctly" in page.text
    assert "1 epoch of 12 steps" in page.text
    assert ", 1 core Software" in page.text
    assert not re.search(r"\b1 (epoch|picture|step|core|class)e?s\b", page.text.replace("1 validation pictures", ""))


def test_pictures_have_names_and_links(tmp_path):
    source = tmp_path / "pets"
    (source / "val").mkdir(parents=True)
    for row in range(0, 40, 2):
        (source / "val" / f"a #{row}.png").touch()
    facts = np.zeros(40, facts_type(20))
    facts["file"] = [f"val/a #{number}.png".encode() for number in range(40)]
    dataset = make_dataset("abc")
    dataset = dataclasses.replace(dataset, validation=dataclasses.replace(dataset.validation, facts=facts))
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, source=str(source)))
    run = Workdir(tmp_path / "runs" / "1")
    run.record(config, Classes(dataset.names, (), dataset.name, dataset.license))
    (run.path / "metrics.jsonl").write_text("".join(line + "\n" for line in LINES))
    evaluation = measure(dataset, skill=0.5)
    page = Page(write_report(run.path, evaluation, dataset, calibration=CALIBRATION).read_text())
    # Only files that are there are links.
    hardest = find_hardest(evaluation, 0, 4)
    links = {attributes["href"] for attributes in page.attributes("a")}
    assert {f"../../pets/val/a%20%23{row}.png" for row in hardest if row % 2 == 0} <= links
    assert not any(f"{row}.png" in link for link in links for row in ("#", " ", "1", "3", "5", "7", "9"))
    assert {f"val/a #{row}.png" for row in hardest} <= {word.strip() for word in page.words}
    assert "Hardest pictures of each class" in page.text
    errors = find_label_errors(evaluation)
    assert errors
    assert f"{len(errors)} of 40 held-out pictures may have a wrong label" in page.text


def test_settings_are_readable_in_any_language(tmp_path):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, source="фото"))
    assert '"source": "фото"' in Page(write(tmp_path, "ab", config=config)[0]).text


def test_a_file_that_cannot_be_looked_up_has_no_link(tmp_path):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, source=str(tmp_path)))
    run = Workdir(tmp_path / "run")
    run.record(config, CLASSES)
    assert report.link_to(run, "x" * 300) is None  # The system raises an error, and does not say that it is missing.


def test_few_classes_have_no_top5(tmp_path):
    assert "Top-5" not in write(tmp_path, "abcde")[0]


@pytest.mark.parametrize("count", [3, 30])
def test_nothing_is_fetched(tmp_path, count):
    html, *_ = write(tmp_path, [f"class {i}" for i in range(count)])
    page = Page(html)
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert not page.attributes("link")
    assert "@import" not in html
    assert html.count("url(") == html.count("url(#")


def test_charts_take_their_colours_from_the_page(tmp_path):
    html, *_ = write(tmp_path, "abc")
    for variable in {*charts.VARIABLES.values()} - {*charts.SERIES.values()}:
        assert f"var({variable})" in html
        assert html.count(f"{variable}: #") == 2  # a light value and a dark one
    for color in charts.VARIABLES:
        assert color not in html
    assert html.count("<svg") == 4


def test_charts_are_well_formed_and_repeatable():
    reliability = measure(make_dataset("abc")).reliability
    curves = [charts.Curve("training", charts.TRAIN, [1.0, 2.0], [0.5, float("nan")])]
    for draw in (lambda: charts.draw_reliability(reliability), lambda: charts.draw_curves(curves, marked=1.0)):
        assert ET.fromstring(draw()).tag.endswith("svg")
        assert draw() == draw()


@pytest.mark.parametrize(("step", "epoch"), [(20, 2), (30, 3)])
def test_the_page_is_of_the_checkpoint_that_was_measured(tmp_path, step, epoch):
    calibration = dataclasses.replace(CALIBRATION, step=step)
    page = Page(write(tmp_path, "abc", calibration=calibration)[0])
    assert f"from epoch {epoch} of 3, selected by its accuracy on these" in page.text


def test_the_page_describes_earlier_sessions(tmp_path):
    mixed = dataclasses.replace(CONFIG, augment=AugmentConfig(mixup=0.2), label_smoothing=0.1)
    for step, config in ((0, mixed), (20, CONFIG)):
        record_session(Workdir(tmp_path), config, CLASSES, step=step)
    page = Page(write(tmp_path, "abc", config=CONFIG)[0])
    assert "until step 20 mixup 0.2; then none" in page.text
    assert "measured during the epoch, on augmented pictures with label smoothing" in page.text


@pytest.mark.parametrize("lines", [[], LINES[:1], LINES[:2]])
def test_a_short_log(tmp_path, lines):
    html, *_ = write(tmp_path, "abc", lines=lines)
    assert ("Learning curves" in html) == (len(lines) == 2)
    assert "dotted line" not in html


@pytest.mark.parametrize("count", [2, 25])
def test_few_classes_have_a_table(tmp_path, count):
    html, evaluation, _ = write(tmp_path, [f"class {i}" for i in range(count)])
    page = Page(html)
    shown = [[int(cell or 0) for cell in row] for row in page.matrix if row]
    assert shown == evaluation.confusion.tolist()
    assert not page.scripts


@pytest.mark.parametrize("count", [26, 60])
def test_many_classes_have_a_map(tmp_path, count):
    html, evaluation, dataset = write(tmp_path, [f"class {i}" for i in range(count)], count=200)
    page = Page(html)
    assert not page.matrix
    source = next(image["src"] for image in page.attributes("img") if image["alt"].startswith("Confusion"))
    pixels = np.asarray(decode(source))
    shown = json.loads(page.scripts[0].split(" = ", 1)[1].split(";\n", 1)[0])
    order = [dataset.names.index(name) for name in shown["names"]]
    assert sorted(order) == list(range(count))
    counts = evaluation.confusion[np.ix_(order, order)]
    for row, column, number in shown["cells"]:
        assert counts[row, column] == number
    assert sum(number for *_, number in shown["cells"]) == 200
    assert shown["totals"] == counts.sum(axis=1).tolist()
    np.testing.assert_array_equal(pixels[..., 3] > 0, counts > 0)
    blue = pixels[..., 2] > pixels[..., 0]
    np.testing.assert_array_equal(blue, np.eye(count, dtype=bool))


def test_very_many_classes_have_a_list_only(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAP_LIMIT", 29)
    page = Page(write(tmp_path, [f"class {i}" for i in range(30)])[0])
    assert not page.matrix
    assert not page.scripts
    assert "Most frequent confusions" in page.text


def test_classes_that_are_confused_are_adjacent():
    confusion = 10 * np.eye(8, dtype=np.int64)
    for i, j in ((0, 5), (3, 7), (1, 6)):
        confusion[i, j] = 4
    order = report.order_by_confusion(confusion)
    for i, j in ((0, 5), (3, 7), (1, 6)):
        assert abs(order.index(i) - order.index(j)) == 1


def test_a_class_without_pictures_is_left_out_of_the_ranking(tmp_path):
    html, evaluation, dataset = write(tmp_path, [f"class {i}" for i in range(60)], count=30)
    assert "nan" not in Page(html).text
    rows = report.describe_classes(evaluation, dataset.names)
    assert any(row["top1"] is None for row in rows)
    assert all((row["top1"] is None) == (row["count"] == 0) for row in rows)


@pytest.mark.parametrize("count", [3, 30])
def test_class_names_are_escaped(tmp_path, count):
    names = [EVIL, *(f"class {i}" for i in range(count - 1))]
    page = Page(write(tmp_path, names, skill=-1)[0])
    assert len(page.scripts) == (count > report.TABLE_LIMIT)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert EVIL in " ".join(page.words)
    assert EVIL in [attributes.get("title") for _, attributes in page.tags]
    if page.scripts:
        assert EVIL in json.loads(page.scripts[0].split(" = ", 1)[1].split(";\n", 1)[0])["names"]


@pytest.mark.parametrize("count", [3, 30])
def test_a_name_that_utf8_cannot_encode_is_still_written(tmp_path, count):
    html, *_ = write(tmp_path, ["caf\udce9", *(f"class {i}" for i in range(count - 1))], skill=-1)
    assert "caf?" in html


def test_mistakes_are_the_most_confident_first():
    dataset = make_dataset("abc", count=100)
    evaluation = measure(dataset, skill=0)
    chosen = report.confident_mistakes(evaluation, dataset.validation)
    assert len(chosen) == report.PICTURES
    wrong = evaluation.predicted != dataset.validation.labels
    assert all(wrong[i] for i in chosen)
    expected = np.sort(evaluation.confidence[wrong])[::-1][: len(chosen)]
    np.testing.assert_array_equal(evaluation.confidence[chosen], expected)


def test_a_perfect_model_has_no_mistakes(tmp_path):
    html, *_ = write(tmp_path, "abc", skill=100)
    # A bootstrap without a mistake to draw says nothing, unlike Wilson's interval of the top-1 accuracy.
    assert re.findall("95% interval.* to|no interval", html) == ["95% interval 91.2 to", "no interval", "no interval"]
    assert "There are none." in html


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (5, 5), (24, 24), (1000, 24)])
def test_examples_are_spread_and_never_repeated(count, shown):
    positions = report.evenly_spaced(count)
    assert len(positions) == len(set(positions)) == shown
    assert (positions[0], positions[-1]) == (0, count - 1)


def test_pictures_are_those_of_the_split():
    dataset = make_dataset("abc")
    (shown,) = report.show_pictures(dataset.validation, measure(dataset), [7], link=lambda file: None)
    np.testing.assert_array_equal(np.asarray(decode(shown["png"])), dataset.validation.images[7])
    assert shown["true"] == dataset.validation.labels[7]


def test_large_pictures_are_shrunk():
    dataset = make_dataset("ab", count=2, side=300)
    (shown,) = report.show_pictures(dataset.validation, measure(dataset), [0], link=lambda file: None)
    assert decode(shown["png"]).size == (report.THUMBNAIL, report.THUMBNAIL)


def test_damaged_lines_of_the_log_are_left_out_and_reported_once(tmp_path, capsys):
    damaged = [LINES[0], LINES[1].replace("loss", "lass"), "\0" * 40, *LINES[2:]]
    page, _, _ = write(tmp_path, "abc", lines=damaged)
    assert page
    assert capsys.readouterr().err == (
        f"{tmp_path}/metrics.jsonl has 2 lines without a whole record, from line 2 on: the report leaves them out\n"
    )


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_atomically", full)
    with pytest.raises(UserError, match=r"the report cannot be written to .*: No space left on device"):
        write(tmp_path, "abc")


def test_a_folder_that_is_not_a_workdir(tmp_path):
    dataset = make_dataset("abc")
    with pytest.raises(UserError, match="is not the workdir of a training run"):
        write_report(tmp_path, measure(dataset), dataset, calibration=CALIBRATION)
