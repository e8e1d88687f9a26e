"""The model card: figures, trainings, classes and terms of a run."""

import html
import json
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from runs import PICTURES, card_of, evaluate_run, make_run

import export
from export.card import _classes, _plain, write_card
from jaxcnn.config import Config
from jaxcnn.metadata import Metadata
from jaxcnn.run.earlier_trainings import Training, record_earlier
from jaxcnn.run.workdir import Workdir

EARLIER = (
    Training("pets | photos", "ask <us>", {"schedule": "9 epochs", "time": "8 h"}),
    Training("birds", "", {"schedule": "2 epochs", "arithmetic": "3e9 floating point operations"}),
)


@pytest.mark.run
def test_the_card_has_the_figures_of_the_run(tmp_path):
    run = make_run(tmp_path / "run", precision="auto")
    record = run / "environment.json"
    environment = json.loads(record.read_text())
    del environment["checksum"]
    record.write_text(json.dumps(environment | {"precision": "bfloat16"}))
    (run / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 10, "epoch": 1.0, "time": 0.0, "loss": 1.0, "top1": 0.5, "learning_rate": 0.1, '
        '"resolution": 8, "images_per_second": 16.0}\n'
        '{"kind": "validation", "step": 10, "epoch": 1.0, "time": 1.0, "loss": 1.0, "top1": 0.5, "top5": 1.0, '
        '"ece": 0.1}\n'
    )
    found = evaluate_run(run)
    card = card_of(run)
    front = card.split("---")[1]
    assert "pipeline_tag: image-classification" in front
    assert "license: other" in front
    assert f"{{type: loss, value: {found['loss']:.6g}}}" in front
    for expected in (
        "200 validation pictures",
        f"| top-1 accuracy | {found['top1']:.4f} |",
        f"| cross-entropy | {found['loss']:.4f} |",
        f"| calibration error | {found['ece']:.4f} |",
        f"The standard error of the top-1 accuracy is {np.sqrt(found['top1'] * (1 - found['top1']) / 200):.4f}.",
        "cat, dög, eel",
        "CC-BY-4.0",
        "| this checkpoint | after 7 steps |",
        "| network | resnet, stages of 4 and 6 channels",
        "| schedule | 30 epochs of 10 steps, batch size 64, 8x8 pixels, seed 0",
        "floating-point operations: 640 pictures of 8x8 pixels",
        "| time | 40 s in training steps",
        "| precision | bfloat16 |",
        "It knows these 3 classes and no others.",
        "It sees 8x8 pixels.",
        "It was trained only on pets.",
        "--data.source FOLDER --split all",
    ):
        assert expected in card
    assert "largest difference is" in card
    assert re.search(r"```\n\nonnxruntime .* unless .* `ORT_DISABLE_TELEMETRY` is 1", card)
    for absent in ("top-5", "mirror", "calibrated", "{"):
        assert absent not in card.split("---", 2)[2].split("## Usage")[0]
    assert "left from right" not in card


@pytest.mark.run
def test_the_card_is_valid_for_the_hub(tmp_path):
    run = make_run(tmp_path / "run")
    found = evaluate_run(run)
    path = export.export_workdir(run).with_suffix("") / "README.md"
    card = ModelCard.load(path)
    assert isinstance(card.data, ModelCardData)
    assert (card.data.library_name, card.data.pipeline_tag) == ("onnx", "image-classification")
    assert card.data.license == "other"
    assert {"jax", "onnx"} <= set(card.data.tags)
    assert card.data.model_name == "resnet"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: pytest.approx(found[name], rel=1e-5) for name in ("top1", "top5", "loss", "ece")}
    assert {result.dataset_name for result in card.data.eval_results} == {"pets"}
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    # Written again from what was read, the front matter says the same.
    assert ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text}").data.to_dict() == card.data.to_dict()


def test_the_card_counts_the_real_pictures_that_were_compared(run, tmp_path):
    assert "and 7 real ones:" in card_of(run, output=tmp_path / "m.onnx", pictures=np.concatenate([PICTURES] * 2))


def test_the_card_lists_earlier_trainings(tmp_path):
    run = make_run(tmp_path / "run")
    record_earlier(EARLIER, Workdir(run).earlier_trainings)
    card = card_of(run)
    assert "It was trained only on pets \\| photos and birds and pets. Image collections" in card
    section = card.split("## Training\n\n")[1].split("\n\n## ")[0]
    start, own_name, own, *earlier = re.split(r"\n*### (.+)\n\n", section)
    assert (start, own_name) == ("", "Training 3, on pets")
    assert "| schedule | 30 epochs" in own
    assert earlier == [
        "Training 2, on birds",
        "|  |  |\n| --- | --- |\n| schedule | 2 epochs |\n| arithmetic | 3e9 floating point operations |",
        "Training 1, on pets \\| photos",
        "|  |  |\n| --- | --- |\n| schedule | 9 epochs |\n| time | 8 h |",
    ]
    terms = card.split("## Terms of use\n\n")[1].split("\n")[0]
    assert terms == (
        "The weights were trained on pets (CC-BY-4.0), and before that on birds (terms not recorded), and before that "
        "on pets \\| photos (ask &lt;us>). Use them only as these terms allow."
    )


def test_data_of_two_trainings_is_listed_once(tmp_path):
    run = make_run(tmp_path / "run")
    record_earlier([Training("pets", "CC-BY-4.0", {})], Workdir(run).earlier_trainings)
    card = card_of(run)
    assert "The weights were trained on pets (CC-BY-4.0). Use them" in card
    assert "It was trained only on pets. Image collections" in card


def test_the_card_of_an_unfinished_run_has_the_figures_of_the_checkpoint(file):
    card = (file.with_suffix("") / "README.md").read_text()
    assert "| top-1 accuracy | 0.5000 |" in card
    assert "model-index" not in card
    assert "| time |" not in card
    assert "## Classes\n\ncat, dög, eel" in card
    assert "from worst to best" not in card


def test_the_card_of_a_model_trained_with_mirror_images(tmp_path):
    run = make_run(tmp_path / "run", flip=True)
    found = evaluate_run(run, flip=True)
    flipped = found["with_flip"]
    assert flipped["loss"] != found["loss"]
    card = card_of(run)
    assert f"| cross-entropy | {found['loss']:.4f} | {flipped['loss']:.4f} |" in card
    assert "it cannot tell left from right" in card
    assert "| augmentation | horizontal flips |" in card


def test_class_names_cannot_break_the_card():
    assert _plain("a | b\n# <c>") == "a \\| b # &lt;c>"
    assert _plain("a_b R&D") == "a_b R&D"


def test_names_are_shown_as_they_are():
    links, marks = ("![x](//e.org/x.png)", "[x](//e.org)"), ("`a", "*b* **c**", "_d_ __e__", "~~f~~")
    names = (*links, *marks, "&lt;b&gt; &#33;", "<b>g</b>", "h\\|i", "j\\", "\\", "k_l")
    metadata = Metadata(
        names=names,
        wnids=(),
        image_size=(8, 8),
        dataset=names[0],
        config=Config(),
        trainings=(Training(names[1], names[2], {}),),
        description=names[3],
    )
    file = {"file": "m.onnx", "bytes": 1, "opset": 17, "ir_version": 8, "sha256": "a", "inputs": [], "outputs": []}
    record = make_evaluation(names, [0.5] * len(names)) | {"count": 9, "top1": 0.5, "top5": 1, "loss": 1, "ece": 0}
    card = write_card(metadata, file, evaluation=record, checks=[])
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card.split("\n---\n")[1])
    for tag in ("img", "a", "em", "strong", "s", "b"):
        assert f"<{tag} " not in shown
        assert f"<{tag}>" not in shown
    for name in names:
        assert f"<td>{html.escape(name, quote=False)}</td>" in shown
    assert f"classes of {names[0]}</h1>" in shown
    assert f"<p>{names[3]}. One ONNX file" in shown


def make_evaluation(names, right, confusions=()):
    """A record with these shares of a hundred pictures of each class."""
    confusion = np.diag([round(100 * share) for share in right])
    for i, j, times in confusions:
        confusion[i, j] = times
    per_class = [{"name": name, "count": 100, "top1": share} for name, share in zip(names, right, strict=True)]
    return {"per_class": per_class, "confusion": confusion.tolist()}


def test_many_classes_are_listed_from_both_ends():
    names = [f"c{i:02}" for i in range(30)]
    record = make_evaluation(names, [i / 100 for i in range(30)], [(0, i, 30 + i) for i in range(1, 13)])
    record["per_class"][3] |= {"count": 0, "top1": None}
    ranks, confusions = _classes(record).split("## Most frequent confusions")
    rows = [line.split(" | ") for line in ranks.splitlines() if line.startswith("| c")]
    assert [row[0].strip("| ") for row in rows] == [names[i] for i in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10)]
    assert [row[3] for row in rows] == names[:-11:-1]
    assert [row[1] for row in rows[:2]] == ["0.0000", "0.0100"]
    assert rows[0][4] == "0.2900"
    assert {row[2] for row in rows} == {row[5].strip("| ") for row in rows} == {"100"}
    listed = [line for line in confusions.splitlines() if line.startswith("| c0")]
    assert listed == [f"| c00 | c{i:02} | {30 + i} | 100 |" for i in range(12, 2, -1)]


def test_few_classes_are_all_listed():
    section = _classes(make_evaluation(["a", "b", "c"], [0.5, 0.25, 1]))
    assert [line for line in section.splitlines() if line.endswith("100 |")] == [
        "| b | 0.2500 | 100 |",
        "| a | 0.5000 | 100 |",
        "| c | 1.0000 | 100 |",
    ]
    assert "confusions" not in section
