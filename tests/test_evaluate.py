"""The evaluation command on real files: figures, record, printed tables, and errors of the user."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from jaxcnn import config as settings
from jaxcnn import data, evaluation_record
from jaxcnn.calibration import Calibration, write_calibration
from jaxcnn.classifier import load
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.data import Split
from jaxcnn.errors import UserError
from jaxcnn.evaluate import Arguments, default_output, main, parse, print_evaluation
from jaxcnn.evaluation import evaluate, measure
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.run.checkpoint import open_checkpoints
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import create_state

ROOT = Path(__file__).parent.parent
SIDE = 8
NAMES = ("a red", "b green", "c blue")
COLOURS = ((200, 90, 10), (90, 200, 10), (10, 90, 200))


@pytest.fixture
def pictures(tmp_path):
    """Class folders of plain colours: per class 4 training and 3 validation pictures; one green one is in `c blue`."""
    for split, count in (("train", 4), ("val", 3)):
        for name, colour in zip(NAMES, COLOURS, strict=True):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (SIDE, SIDE), tuple(level + i for level in colour)).save(folder / f"{i}.png")
    Image.new("RGB", (SIDE, SIDE), COLOURS[1]).save(tmp_path / "pictures" / "val" / NAMES[2] / "0.png")
    return tmp_path / "pictures"


@pytest.fixture
def config(pictures, tmp_path):
    return Config(
        data=DataConfig(source=str(pictures), cache_dir=str(tmp_path / "cache"), image_size=SIDE),
        model=ModelConfig(widths=(4,), blocks=(1,)),
        batch_size=4,
    )


@pytest.fixture
def exported(config, tmp_path):
    """An ONNX file that keeps the contract: it answers with the mean of each colour, less 100."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["means"], axes=[1, 2], keepdims=0),
            helper.make_node("Sub", ["means", "hundred"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("hundred", TensorProto.FLOAT, [], [100.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    written = {"names": NAMES, "wnids": [], "image_size": [SIDE, SIDE], "config": json.loads(settings.to_json(config))}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in written.items()})
    path = tmp_path / "out" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path)
    return path


@pytest.fixture
def workdir(config, tmp_path):
    """A run whose best checkpoint is an untrained network."""
    run = Workdir(tmp_path / "run")
    run.record(config, Classes(NAMES, (), "pictures", "unknown"))
    state = create_state(
        jax.random.key(3),
        model=registry.build(config.model, classes=3),
        optimizer=make_optimizer(config.optim, steps=10),
        image_size=SIDE,
        averaged=False,
    )
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(state, metrics={"top1": 0.5})
    return run.path


def test_an_onnx_file(exported, capsys):
    main([str(exported)])
    record = json.loads((exported.parent / "evaluation.json").read_text())
    assert record["count"] == 9
    assert record["top1"] == pytest.approx(8 / 9)
    assert record["top5"] == 1
    assert record["loss"] == pytest.approx(190 / 9)
    assert record["confusion"] == [[3, 0, 0], [0, 3, 0], [0, 1, 2]]
    assert [entry["name"] for entry in record["per_class"]] == list(NAMES)
    assert [entry["top1"] for entry in record["per_class"]] == pytest.approx([1, 1, 2 / 3])
    assert [entry["count"] for entry in record["per_class"]] == [3, 3, 3]
    assert sum(entry["count"] for entry in record["reliability"]) == 9
    assert record["reliability"][0] == {"count": 0, "confidence": None, "accuracy": None}
    assert (record["model"], record["split"]) == (str(exported), "validation")
    printed = capsys.readouterr().out
    assert "0.8889" in printed
    worst, confused = printed.split("worst classes")[1].split("true class")
    assert worst.index("c blue") < worst.index("a red")
    assert confused.index("c blue") < confused.index("b green")


def test_metrics_of_classes_have_intervals(exported, capsys):
    main([str(exported)])
    record = json.loads((exported.parent / "evaluation.json").read_text())
    assert record["balanced_accuracy"] == record["recall"] == pytest.approx(8 / 9)
    assert record["precision"] == pytest.approx((1 + 3 / 4 + 1) / 3)
    assert record["f1"] == pytest.approx((1 + 6 / 7 + 4 / 5) / 3)
    assert [entry["precision"] for entry in record["per_class"]] == pytest.approx([1, 3 / 4, 1])
    assert [entry["f1"] for entry in record["per_class"]] == pytest.approx([1, 6 / 7, 4 / 5])
    for name, (low, high) in record["intervals"].items():
        assert 0 <= low <= record[name] <= high + 1e-9 <= 1 + 1e-9, name
    assert record["intervals"].keys() >= {"top1", "top5", "balanced_accuracy", "precision", "recall", "f1"}
    assert "balanced accuracy" in capsys.readouterr().out


def test_every_picture_keeps_its_name(exported, pictures, tmp_path):
    main([str(exported)])
    with (exported.parent / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"val/{name}/{i}.png" for name in NAMES for i in range(3)]
    assert all((pictures / row["file"]).is_file() for row in rows)
    assert [row["true_class"] for row in rows] == [name for name in NAMES for _ in range(3)]
    wrong = [row for row in rows if row["true_class"] != row["predicted_class"]]
    assert [(row["file"], row["predicted_class"]) for row in wrong] == [("val/c blue/0.png", "b green")]
    # Its logits are -10, 100 and -90.
    assert float(wrong[0]["loss"]) == pytest.approx(190)
    assert (float(wrong[0]["probability"]), float(wrong[0]["true_probability"])) == (1, 0)
    assert (wrong[0]["class_2"], wrong[0]["class_3"]) == ("a red", "c blue")
    # Other pictures, and other names.
    (pictures / "val" / NAMES[0] / "0.png").rename(pictures / "val" / NAMES[0] / "\r.png")
    main([str(exported), "--split", "all", "--output", str(tmp_path / "mine.json")])
    with (tmp_path / "mine-predictions.csv").open(newline="") as file:
        files = [row["file"] for row in csv.DictReader(file)]
    assert [name.partition("/")[0] for name in files] == ["train"] * 12 + ["val"] * 9
    assert f"val/{NAMES[0]}/\r.png" in files


def test_a_file_that_happens_to_have_the_name_of_the_predictions_is_not_replaced(exported):
    (exported.parent / "predictions.csv").write_text("name,age\n")
    with pytest.raises(UserError, match=r"would overwrite .*predictions.csv, which is something else"):
        main([str(exported)])
    assert (exported.parent / "predictions.csv").read_text() == "name,age\n"


def test_training_pictures_get_a_record_of_their_own(exported):
    main([str(exported), "--split", "train"])
    assert json.loads((exported.parent / "evaluation-train.json").read_text())["count"] == 12
    assert not (exported.parent / "evaluation.json").exists()


def test_a_workdir(workdir, config):
    main([str(workdir), "--output", str(workdir / "mine.json")])
    record = json.loads((workdir / "mine.json").read_text())
    assert record["count"] == 9
    assert np.sum(record["confusion"]) == 9
    assert not (workdir / "evaluation.json").exists()
    main([str(workdir)])
    again = json.loads((workdir / "evaluation.json").read_text())
    assert again == record
    assert (record["step"], record["temperature"]) == (0, 1)


def test_a_workdirs_logits_are_divided_by_its_temperature(workdir):
    main([str(workdir)])
    before = json.loads((workdir / "evaluation.json").read_text())
    calibration = Calibration(step=0, temperature=10.0, count=9, ece_before=0.5, ece_after=0.1)
    write_calibration(calibration, workdir / "calibration.json")
    main([str(workdir)])
    after = json.loads((workdir / "evaluation.json").read_text())
    assert after["temperature"] == 10
    assert (after["top1"], after["confusion"]) == (before["top1"], before["confusion"])
    assert after["loss"] != pytest.approx(before["loss"], abs=1e-3)
    write_calibration(dataclasses.replace(calibration, step=1), workdir / "calibration.json")
    main([str(workdir)])
    assert json.loads((workdir / "evaluation.json").read_text()) == before


@pytest.fixture
def others(tmp_path):
    """A folder with four other pictures of each class, without a validation split."""
    for name, colour in zip(NAMES, COLOURS, strict=True):
        (tmp_path / "others" / name).mkdir(parents=True)
        for i in range(4):
            picture = Image.new("RGB", (SIDE, SIDE), tuple(level + 10 + i for level in colour))
            picture.save(tmp_path / "others" / name / f"{i}.png")
    return tmp_path / "others"


def test_other_data_with_the_same_classes(exported, others):
    main([str(exported), "--data.source", str(others), "--data.validation_fraction", ".5"])
    assert json.loads((exported.parent / "evaluation-other.json").read_text())["count"] == 6
    assert not (exported.parent / "evaluation.json").exists()


def test_all_pictures_of_other_data(exported, others, capsys):
    main([str(exported), "--data.source", str(others), "--split", "all"])
    record = json.loads((exported.parent / "evaluation-all-other.json").read_text())
    assert (record["count"], record["split"]) == (12, "all")
    assert record["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert f"{exported} on others, all: 12 of its 12 pictures" in capsys.readouterr().out
    main([str(exported), "--data.source", str(others)])
    assert "on others, validation: 3 of its 12 pictures" in capsys.readouterr().out


def test_a_picture_of_each_class_is_enough_to_measure_on_all(exported, tmp_path):
    for name, colour in zip(NAMES, COLOURS, strict=True):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.new("RGB", (SIDE, SIDE), colour).save(tmp_path / "few" / name / "0.png")
    main([str(exported), "--data.source", str(tmp_path / "few"), "--split", "all", "--flip"])
    record = json.loads((exported.parent / "evaluation-all-other.json").read_text())
    assert record["confusion"] == np.eye(3).tolist()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "evaluation.json"),
        (["--flip"], "evaluation.json"),
        (["--data.cache_dir", "elsewhere"], "evaluation.json"),
        (["--split", "train"], "evaluation-train.json"),
        (["--split", "all"], "evaluation-all.json"),
        (["--data.source", "x"], "evaluation-other.json"),
        (["--data.split_seed", "3"], "evaluation-other.json"),
        (["--data.validation_fraction", ".5", "--split", "all"], "evaluation-all-other.json"),
    ],
)
def test_the_name_of_the_record_says_if_model_or_pictures_are_others(tmp_path, options, name):
    defaults = DataConfig(source="pictures")
    arguments = parse(Arguments(defaults), options)
    assert default_output(tmp_path, arguments, trained_on=defaults) == tmp_path / name
    assert default_output(tmp_path / "model.onnx", arguments, trained_on=defaults) == tmp_path / name
    other = default_output(tmp_path / "model.int8.onnx", arguments, trained_on=defaults)
    assert other == tmp_path / name.replace("evaluation", "evaluation-model.int8")


def test_another_archive_does_not_replace_the_record_of_the_run(tmp_path):
    trained_on = DataConfig(source="tiny_imagenet", archive=str(tmp_path / "half.zip"))
    for archive, other in (("half.zip", ""), ("inner/../half.zip", ""), ("all.zip", "-other")):
        arguments = parse(Arguments(trained_on), ["--data.archive", str(tmp_path / archive)])
        assert default_output(tmp_path, arguments, trained_on=trained_on) == tmp_path / f"evaluation{other}.json"
    arguments = parse(Arguments(DataConfig(source="tiny_imagenet")), ["--data.archive", "all.zip"])
    found = default_output(tmp_path, arguments, trained_on=DataConfig(source="tiny_imagenet"))
    assert found == tmp_path / "evaluation-other.json"


def test_flip_is_recorded_beside_the_plain_figures(workdir, capsys):
    main([str(workdir)])
    plain = json.loads((workdir / "evaluation.json").read_text())
    assert "with_flip" not in plain
    assert "mirror" not in capsys.readouterr().out
    main([str(workdir), "--flip"])
    record = json.loads((workdir / "evaluation.json").read_text())
    flipped = record.pop("with_flip")
    assert record == plain
    assert flipped.keys() == {"top1", "top5", "loss", "ece"}
    # Pictures of one colour are their own mirror images.
    assert flipped == {name: pytest.approx(plain[name], abs=1e-5) for name in flipped}
    assert "with mirror image" in capsys.readouterr().out


def test_another_source_does_not_inherit_the_archive():
    defaults = Arguments(DataConfig(source="tiny_imagenet", archive="tiny.zip"))
    assert parse(defaults, []) == defaults
    assert parse(defaults, ["--data.source=x"]).data == DataConfig(source="x")
    assert parse(defaults, ["--data.source", "x"]).data == DataConfig(source="x")


WNIDS = ("n03", "n02", "n01")
"""Of the classes `NAMES`; folders named by them are found in the other order."""


@pytest.mark.parametrize("folders", [NAMES, WNIDS], ids=["names", "WordNet ids"])
@pytest.mark.parametrize("there", [(0, 1, 2), (0, 2), (1, 2), (2,)], ids=str)
def test_folders_are_matched_by_name_or_wordnet_id(exported, tmp_path, folders, there):
    give(exported, wnids=WNIDS)
    for i in there:
        (tmp_path / "other" / folders[i]).mkdir(parents=True)
        for number in range(i + 1):
            Image.new("RGB", (SIDE, SIDE), COLOURS[i]).save(tmp_path / "other" / folders[i] / f"{number}.png")
    main([str(exported), "--data.source", str(tmp_path / "other"), "--split", "all"])
    record = json.loads((exported.parent / "evaluation-all-other.json").read_text())
    assert record["confusion"] == [[(i + 1) * (i == j and i in there) for j in range(3)] for i in range(3)]
    assert [entry["name"] for entry in record["per_class"]] == list(NAMES)
    assert [entry["top1"] for entry in record["per_class"]] == [1 if i in there else None for i in range(3)]


def test_a_class_that_the_model_does_not_have_is_refused(exported, pictures):
    for split in ("train", "val"):
        (pictures / split / "b green").rename(pictures / split / "b lime")
    message = "'b lime' of pictures is not one of the model's 3, which begin with 'a red', 'b green', 'c blue'; give"
    with pytest.raises(UserError, match=message) as caught:
        main([str(exported)])
    assert "\n" not in str(caught.value)


def test_an_additional_class_is_refused(exported, pictures):
    for split in ("train", "val"):
        folder = pictures / split / "d white"
        folder.mkdir()
        Image.new("RGB", (SIDE, SIDE), "white").save(folder / "0.png")
    with pytest.raises(UserError, match="the class 'd white' of pictures is not one of the model's 3"):
        main([str(exported)])


def held_out_of(path):
    """A Tiny data set without validation pictures of its own, two classes of four pictures."""
    for name, colour in zip(NAMES[:2], COLOURS[:2], strict=True):
        (path / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (SIDE, SIDE), tuple(level + i for level in colour)).save(path / name / f"{i}.png")
    return path


def give(path, **values):
    """Has a file say something else of itself."""
    model = onnx.load(path)
    kept = {prop.key: prop.value for prop in model.metadata_props}
    helper.set_model_props(model, kept | {key: json.dumps(value) for key, value in values.items()})
    onnx.save(model, path)


def give_config(path, config):
    """Has a file say that it was trained with other settings."""
    give(path, config=json.loads(settings.to_json(config)))


def begin_run(config, path):
    """A run with the record of its pictures, and the data set that it began with."""
    dataset = data.load(config.data)
    Workdir(path).record(config, Classes(dataset.names, (), dataset.name, ""))
    Workdir(path).record_pictures(dataset.fingerprint())
    return dataset


@pytest.mark.parametrize("option", [["--data.validation_fraction", ".5"], ["--data.split_seed", "1"]])
@pytest.mark.parametrize("spelling", ["{}", "{}/"])
def test_another_split_of_a_runs_pictures_is_refused(exported, config, tmp_path, option, spelling):
    source = held_out_of(tmp_path / "photos")
    give_config(exported, dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(source))))
    named = ["--data.source", spelling.format(source)]
    main([str(exported), *named])
    with pytest.raises(UserError, match="photos would be held out that the model was trained on"):
        main([str(exported), *named, *option])
    main([str(exported), *named, *option, "--split", "all"])
    main([str(exported), "--data.source", str(held_out_of(tmp_path / "others")), *option])


def test_training_pictures_are_not_held_out_in_place_of_the_validation_split(exported, pictures):
    with pytest.raises(UserError, match="would be held out that the model was trained on"):
        main([str(exported), "--data.validation_fraction", ".5"])


@pytest.mark.parametrize("is_recorded", [True, False], ids=["recorded", "earlier version"])
def test_the_training_pictures_alone_are_not_validation_pictures(exported, config, pictures, capsys, is_recorded):
    if is_recorded:
        give(exported, pictures=dataclasses.asdict(data.load(config.data).fingerprint()))
    main([str(exported)])
    alone = [str(exported), "--data.source", str(pictures / "train")]
    with pytest.raises(UserError, match="at least 3 of the 3 validation pictures of train are pictures that the model"):
        main(alone)
    with pytest.raises(UserError, match="at least 3 of the 3 validation pictures of train"):
        evaluate(exported, pictures / "train")
    assert evaluate(exported, pictures / "train", split="all").count == 12
    main([*alone, "--split", "all"])
    assert "warning" not in capsys.readouterr().err
    main([*alone, "--data.allow_leaks"])
    assert "warning: at least 3 of the 3 validation pictures of train are pictures that" in capsys.readouterr().err


def test_a_file_away_from_its_run_recognises_copies_of_its_pictures(exported, config, tmp_path):
    source = held_out_of(tmp_path / "photos")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(source)))
    give(exported, pictures=dataclasses.asdict(data.load(config.data).fingerprint()))
    copied = shutil.copytree(source, tmp_path / "copied")
    main([str(exported), "--data.source", str(copied)])
    with pytest.raises(UserError, match="copied would be held out that the model was trained on"):
        main([str(exported), "--data.source", str(copied), "--data.split_seed", "1"])
    give(exported, pictures={"train": 6})
    with pytest.raises(UserError, match=r"was not made by .*: metadata\.pictures\.validation is missing"):
        main([str(exported), "--data.source", str(copied)])


def test_a_run_finds_its_pictures_from_any_directory(workdir, config, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    named = dataclasses.replace(config.data, source=pictures.name)
    Workdir(workdir).record(dataclasses.replace(config, data=named), Classes(NAMES, (), "pictures", "unknown"))
    monkeypatch.chdir(workdir)
    main([str(workdir)])
    main([str(workdir), "--data.source", str(pictures)])
    assert [path.name for path in workdir.glob("evaluation*.json")] == ["evaluation.json"]


def test_a_folder_to_write_to_is_refused_before_anything_is_measured(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("loaded"))
    for folder in (str(tmp_path), ".", ""):
        with pytest.raises(UserError, match=r"output is '.*', which is a folder; give the name of a file in it"):
            main([str(exported), "--output", folder])
    with pytest.raises(UserError, match=rf"x.json' cannot be written: {exported} is a file; give another --output$"):
        main([str(exported), "--output", str(exported / "new" / "x.json")])


def test_only_an_earlier_evaluation_is_replaced(exported, workdir, tmp_path, monkeypatch):
    earlier, empty, array = (tmp_path / name for name in ("new/folder/earlier.json", "empty.json", "array.json"))
    empty.touch()
    array.write_text('["per_class"]')
    for output in (earlier, earlier, empty):
        main([str(exported), "--output", str(output)])
        assert json.loads(output.read_text())["count"] == 9
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("loaded"))
    for other in (exported, workdir / "config.json", array):
        before = other.read_bytes()
        message = rf"the evaluation would overwrite {other}, which is something else; give the name of a new file"
        with pytest.raises(UserError, match=message):
            main([str(exported), "--output", str(other)])
        assert other.read_bytes() == before


def test_a_pipe_is_not_replaced(exported, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"would overwrite .*pipe, which is something else"):
        main([str(exported), "--output", str(tmp_path / "pipe")])
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_happens_to_have_the_name_of_the_record_is_not_replaced(exported):
    (exported.parent / "evaluation.json").write_text('{"accuracy": 0.5}')
    with pytest.raises(UserError, match=r"would overwrite .*evaluation.json, which is something else"):
        main([str(exported)])


@pytest.mark.parametrize("split", ["validation", "all"])
def test_the_split_of_a_run_applies_to_its_own_source(exported, config, pictures, tmp_path, capsys, split):
    source = held_out_of(tmp_path / "photos")
    changed = dataclasses.replace(config.data, source=str(source), validation_fraction=0.5, split_seed=3)
    give_config(exported, dataclasses.replace(config, data=changed))
    main([str(exported), "--data.source", str(pictures), "--split", split])
    count = sum(1 for _ in pictures.glob("val/*/*" if split == "validation" else "*/*/*"))
    assert f"on pictures, {split}: {count} of its" in capsys.readouterr().out


def test_a_run_whose_pictures_changed_is_measured_on_others_or_on_all(exported, config, tmp_path):
    source = held_out_of(tmp_path / "photos")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(source)))
    begin_run(config, exported.parent)
    give_config(exported, config)
    main([str(exported)])
    Image.new("RGB", (SIDE, SIDE), COLOURS[0]).save(source / NAMES[0] / "5.png")
    for split in ("validation", "train"):
        with pytest.raises(UserError, match="have changed since the model was trained"):
            main([str(exported), "--split", split])
    main([str(exported), "--split", "all"])
    main([str(exported), "--data.source", str(held_out_of(tmp_path / "others"))])


def test_another_image_size_is_refused(exported):
    with pytest.raises(UserError, match=r"data\.image_size is 9, but the model takes 8; give 8 or"):
        main([str(exported), "--data.image_size", "9"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a workdir or an .onnx file first"),
        (["--split", "train"], "give a workdir or an .onnx file first"),
        (["no/such/path"], "no/such/path does not exist"),
    ],
)
def test_no_model(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


@pytest.mark.parametrize(("options", "split", "flip"), [("", "validation", False), ("--split all --flip", "all", True)])
def test_python_measures_what_the_command_does(exported, pictures, tmp_path, options, split, flip):
    output = tmp_path / "evaluation.json"
    main([str(exported), "--output", str(output), *options.split()])
    expected = json.loads(output.read_text())
    for model in (exported, str(exported), load(exported)):
        for source in (None, pictures, str(pictures), load(exported).config.data):
            found = evaluate(model, source, split=split, flip=flip)
            assert found.scalars() == (
                expected["with_flip"] if flip else {key: expected[key] for key in found.scalars()}
            )
            assert found.count == expected["count"]


def test_a_batch_for_many_devices_is_not_computed_at_once(exported, config):
    give_config(exported, dataclasses.replace(config, batch_size=2**16))
    classifier, sizes = load(exported), set()
    spied = dataclasses.replace(classifier, logits=lambda images: sizes.add(len(images)) or classifier.logits(images))
    assert evaluate(spied).count == 9
    assert sizes == {256}


def test_python_refuses_what_the_command_refuses(exported, config, tmp_path):
    source = held_out_of(tmp_path / "photos")
    give_config(exported, dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(source))))
    assert evaluate(exported, source).count == 2
    with pytest.raises(UserError, match="photos would be held out that the model was trained on"):
        evaluate(exported, dataclasses.replace(config.data, source=str(source), split_seed=1))
    with pytest.raises(UserError, match="gone does not exist; give a workdir"):
        evaluate(tmp_path / "gone")
    with pytest.raises(UserError, match=r"data\.source 'absent' does not exist"):
        evaluate(exported, "absent")


def test_a_disk_that_is_full_at_the_end_does_not_lose_the_result(exported, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation_record, "write_atomically", fail)
    with pytest.raises(UserError, match=r"cannot be written to .*x\.json: No space left on device; make room and run"):
        main([str(exported), "--output", str(tmp_path / "x.json")])
    assert "0.8889" in capsys.readouterr().out


def test_class_names_cannot_control_the_terminal(capsys):
    names = ["[red]x[/red]", "\x1b[31mevil", "two\nlines", "\udc80", "plain"]
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    split = Split(images, np.arange(20, dtype=np.int32) % 5)
    measured = measure(
        lambda images: images[:, 0, :, 0].repeat(2, 1)[:, :5] / np.float32(16), split, classes=5, batch_size=8
    )
    print_evaluation(measured, names=names, title="[bold]t")
    printed = capsys.readouterr().out
    assert "[red]x[/red]" in printed
    assert "[bold]t" in printed
    assert "\x1b" not in printed
    assert "two\ufffdlines" in printed


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxcnn.evaluate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_process_ends_with_one_line_and_status_2(tmp_path):
    (tmp_path / "model.onnx").write_text("not a model")
    done = run(str(tmp_path / "model.onnx"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("python -m jaxcnn.evaluate: ")


def test_help_lists_the_options():
    done = run("--help")
    assert done.returncode == 0
    for word in (
        "WORKDIR_OR_ONNX",
        "--data.source",
        "--data.archive",
        "--data.cache_dir",
        "--split",
        "--flip",
        "--output",
    ):
        assert word in done.stdout
    # The data options default to other values than in a training without options.
    assert "(default: as in training)" in " ".join(done.stdout.split())
    assert "(default: digits)" not in done.stdout
