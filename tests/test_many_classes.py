"""What is written about a model of the 21,841 classes of ImageNet-21k stays small: nothing has a cell for each pair."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from export.card import _classes, _names
from jaxcnn.calibration import Calibration
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.data import Dataset, Split
from jaxcnn.evaluate import print_evaluation
from jaxcnn.evaluation_record import write_evaluation
from jaxcnn.metrics import score, summarize
from jaxcnn.run.report import write_report
from jaxcnn.run.tensorboard import write_summary
from jaxcnn.run.workdir import Classes, Workdir

CLASSES = 21_841
PICTURES = 300
NAMES = tuple(f"synset {label}" for label in range(CLASSES))
CONFIG = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(1,)), batch_size=4)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (PICTURES, 8, 8, 3), np.uint8)
    split = Split(images, rng.integers(0, CLASSES, PICTURES, np.int32))
    return Dataset(name="synsets", names=NAMES, wnids=(), license="MIT", train=split, validation=split)


@pytest.fixture(scope="module")
def evaluation(dataset):
    """Half of the pictures are right; the last ten are of class 7 and taken for class 21,840."""
    labels = dataset.validation.labels
    labels[-10:] = 7
    logits = np.random.default_rng(1).random((PICTURES, CLASSES), np.float32)
    logits[np.arange(0, PICTURES, 2), labels[::2]] += 9
    logits[-10:, CLASSES - 1] += 20
    return summarize([score(logits, labels, np.ones(PICTURES, bool))], classes=CLASSES)


@pytest.fixture
def bounded():
    """Fails if a test takes over 30 s of CPU, or 300 MB of memory: a byte for each pair of classes would be 477 MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the peak of the memory is read from /proc")

    def read(key):
        return int(re.search(rf"{key}:\s+(\d+) kB", status.read_text())[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak so far
    before, start = read("VmRSS"), time.process_time()
    yield
    assert read("VmHWM") - before < 300e6
    assert time.process_time() - start < 30


def test_the_record_and_what_is_printed(tmp_path, dataset, evaluation, bounded, capsys):
    path = tmp_path / "evaluation.json"
    write_evaluation(evaluation, path, names=NAMES)
    assert path.stat().st_size < 5e6
    record = json.loads(path.read_text())
    assert "confusion" not in record
    assert record["confusions"][0] == [7, CLASSES - 1, 10]
    assert sum(count for *_, count in record["confusions"]) == round((1 - record["top1"]) * PICTURES)
    assert len(record["per_class"]) == CLASSES
    assert record["per_class"][7]["count"] == 10
    print_evaluation(evaluation, names=NAMES, title="synsets")
    assert "synset 21840" in capsys.readouterr().out


def test_the_report(tmp_path, dataset, evaluation, bounded):
    Workdir(tmp_path).record(CONFIG, Classes(NAMES, (), dataset.name, dataset.license))
    (tmp_path / "metrics.jsonl").write_text("")
    calibration = Calibration(step=30, temperature=1.375, count=PICTURES, ece_before=0.3, ece_after=0.1)
    page = write_report(tmp_path, evaluation, dataset, calibration=calibration)
    assert page.stat().st_size < 2e6
    html = page.read_text()
    listed = len(evaluation.worst_classes())
    assert f"The {listed} worst of 21,841 classes" in html
    assert '10 <span class="muted">of 10</span>' in html


def test_the_card(evaluation, tmp_path, bounded):
    path = tmp_path / "evaluation.json"
    write_evaluation(evaluation, path, names=NAMES)
    section = _classes(json.loads(path.read_text()))
    assert "| synset 7 | synset 21840 | 10 | 10 |" in section
    assert len(section.splitlines()) < 40
    names = _names(NAMES, {"file": "model.onnx"})
    assert names.endswith("synset 999 and 20,841 more: the metadata of `model.onnx` lists them all as `names`.")


@pytest.mark.usefixtures("bounded")
def test_tensorboard_gets_no_matrix(tmp_path, evaluation):
    write_summary(tmp_path, CONFIG, evaluation, step=10)
    (events,) = (tmp_path / "events").parent.glob("events*")
    assert events.stat().st_size < 100_000
