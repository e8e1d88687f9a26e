"""Whole runs in small: trained, logged, saved, stopped, killed, resumed, refused; and a training loop of one's own."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from pictures import write_class_folders
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxcnn
from jaxcnn import data, loop, preparation, run_epoch, run_step, training, validation
from jaxcnn.compare import main as compare_command
from jaxcnn.config import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, to_json
from jaxcnn.errors import UserError
from jaxcnn.evaluate import main as evaluate_command
from jaxcnn.evaluation import evaluate
from jaxcnn.loop import fit
from jaxcnn.run import metrics_log, tracking
from jaxcnn.run import workdir as workdir_module
from jaxcnn.run.checkpoint import Checkpoints, load_model, open_checkpoints
from jaxcnn.run.metrics_log import MetricsLog
from jaxcnn.run.recorded import find_runs, is_finished
from jaxcnn.run.sessions import read_sessions
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.run_step import take_step
from jaxcnn.state import TrainState
from jaxcnn.training import train
from jaxcnn.training_run import initial_state, prepare
from server import model as serving
from server.protocols.native import decode_pictures
from server.resize import Resize as ServedResize
from server.settings import Settings

pytestmark = pytest.mark.run

ROOT = Path(__file__).parent.parent
WANTED = SimpleNamespace(is_wanted=lambda: True, check_cost=lambda cost: None)
"""A request that somebody waits for, of any cost."""
COMMAND = (
    "jaxcnn.train --data.image_size 8 --model.widths 8 16 --model.blocks 0 1 --augment.pad_crop 0.1 "
    "--optim.ema_decay 0.9 --batch_size 64"
).split()


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def config(cache_dir):
    return Config(
        data=DataConfig(image_size=8, cache_dir=cache_dir),
        model=ModelConfig(widths=(8, 16), blocks=(0, 1)),
        optim=OptimConfig(learning_rate=0.2, warmup=0.2),
        epochs=3,
    )


def read_log(workdir: Path, kind: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines() if line]
    return [line for line in lines if line["kind"] == kind]


def steps_saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def start(
    workdir: Path, cache_dir: str, *options: str, program: Sequence[str] = ("-m", "jaxcnn.train")
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *COMMAND[1:], "--data.cache_dir", cache_dir, "--workdir", str(workdir), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    return output


def wait_for_checkpoint(process: subprocess.Popen[str], workdir: Path, *, after: int = 0) -> None:
    deadline = time.monotonic() + 120
    while not ((workdir / "checkpoints").exists() and any(step > after for step in steps_saved(workdir))):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_after_checkpoint(workdir: Path, cache_dir: str, *options: str) -> int:
    """Starts a run and kills it after a checkpoint behind step 10; returns the step of its last one."""
    killed = start(workdir, cache_dir, *options, "--checkpoint_minutes", "0.001")
    wait_for_checkpoint(killed, workdir, after=10)
    os.kill(killed.pid, signal.SIGKILL)
    finish(killed)
    reached = steps_saved(workdir)[-1]
    assert reached > 10
    return reached


def test_a_run_writes_everything_it_promises(config, tmp_path):
    evaluation = train(config, tmp_path)
    assert evaluation is not None
    assert evaluation.top1 > 0.6  # Three epochs of a toy; chance is .1.
    left = "config.json classes.json environment.json calibration.json evaluation.json report.html model.onnx".split()
    left += ["predictions.csv"]
    for name in left:
        assert (tmp_path / name).stat().st_size > 0, name
    epochs = read_log(tmp_path, "validation")
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert max(line["top1"] for line in epochs) == pytest.approx(evaluation.top1)
    assert load_model(tmp_path).metrics["top1"] == pytest.approx(evaluation.top1)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["top1"] == pytest.approx(evaluation.top1)
    assert "with_flip" not in record  # Digits are not trained with mirror images.
    trained = read_log(tmp_path, "train")
    assert {"step", "epoch", "loss", "top1", "learning_rate", "images_per_second", "time"} <= trained[0].keys()
    events = EventAccumulator(str(tmp_path)).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("validation/top1")]
    assert logged == [(line["step"], pytest.approx(line["top1"])) for line in epochs]
    assert [image.step for image in events.Images("train/augmented")] == [0]


def test_tensorboard_shows_the_start_of_the_first_batch(config):
    run = prepare(config, data.load(config.data))
    with contextlib.closing(
        data.train_batches(run.dataset.train, seed=config.seed, batch_size=config.batch_size)
    ) as batches:
        batch = next(batches)
    shown = run_step.augment_some(run, 4)
    np.testing.assert_array_equal(shown, batch.images[:4])
    shifted = prepare(dataclasses.replace(config, augment=AugmentConfig(pad_crop=0.5)), run.dataset)
    assert (run_step.augment_some(shifted, 4) != shown).any()
    small = prepare(dataclasses.replace(config, batch_size=2), run.dataset)
    assert run_step.augment_some(small, 4).shape == (2, 8, 8, 3)


def test_a_workdir_and_its_file_are_calibrated_and_evaluated_alike(config, tmp_path):
    returned = train(dataclasses.replace(config, augment=AugmentConfig(flip=True)), tmp_path)
    trained = load_model(tmp_path)
    calibration = json.loads((tmp_path / "calibration.json").read_text())
    assert (calibration["step"], calibration["count"]) == (trained.step, 179)
    assert calibration["temperature"] == trained.temperature != 1
    assert calibration["ece_before"] == pytest.approx(trained.metrics["ece"], abs=1e-6)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert (record["step"], record["temperature"]) == (trained.step, trained.temperature)
    assert returned is not None
    # The metrics of the checkpoint are without calibration.
    assert record["loss"] == returned.loss < trained.metrics["loss"]
    assert record["with_flip"].keys() == {"top1", "top5", "loss", "ece"}
    evaluate_command([str(tmp_path)])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == record
    evaluate_command([str(tmp_path / "model.onnx")])
    exported = json.loads((tmp_path / "evaluation.json").read_text())
    assert exported["confusion"] == record["confusion"]
    for name in ("loss", "ece", "step", "temperature"):
        assert exported[name] == pytest.approx(record[name], abs=1e-5), name
    assert exported["with_flip"] == pytest.approx(record["with_flip"], abs=1e-5)
    evaluate_command([str(tmp_path), "--no_flip", "--output", str(tmp_path / "plain.json")])
    assert "with_flip" not in json.loads((tmp_path / "plain.json").read_text())
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| top-1 accuracy | {record['top1']:.4f} | {record['with_flip']['top1']:.4f} |" in card
    page = (tmp_path / "report.html").read_text()
    assert f"divided by a temperature of {trained.temperature:.3g}," in page


def test_one_device_is_not_given_the_pictures_of_all_in_the_end(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, epochs=1, batch_size=256)
    evaluation, run = train(config, tmp_path), prepare(config, data.load(config.data))
    sizes = []

    def spy(function):
        def spied(*arguments, **options):
            sizes.append(options["batch_size"])
            return function(*arguments, **options)

        return spied

    for name in ("measure", "compute_logits"):
        monkeypatch.setattr(training, name, spy(getattr(training, name)))
    for devices, share in ((4, 64), (64, training.FEW)):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        concluded = training.conclude(run, tmp_path)
        assert sizes == [share] * 2
        sizes.clear()
    assert concluded.top1 == pytest.approx(evaluation.top1, abs=0.02)


def test_a_run_in_half_precision_is_evaluated_in_the_precision_of_its_file(config, tmp_path):
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, precision="bfloat16"))
    train(half, tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    evaluate_command([str(tmp_path / "model.onnx")])
    exported = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("loss", "ece"):
        assert exported[name] == pytest.approx(record[name], abs=1e-5), name


def test_a_finished_run_is_not_trained_further(config, tmp_path):
    train(config, tmp_path)
    steps, log = steps_saved(tmp_path), (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "model.onnx").unlink()
    train(config, tmp_path)
    assert (steps_saved(tmp_path), (tmp_path / "metrics.jsonl").read_text()) == (steps, log)
    assert (tmp_path / "model.onnx").exists()


def test_settings_that_take_no_step_are_not_recorded(config, tmp_path):
    train(config, tmp_path)
    names = ("config.json", "environment.json", "model/README.md")
    recorded = [(tmp_path / name).read_text() for name in names]
    for change, message in (
        ({"optim": dataclasses.replace(config.optim, learning_rate=5.0)}, r"no step left .*learning_rate 0\.2, not 5"),
        ({"epochs": 1}, r"epochs is 1, but the run in .* has taken 3 already; give at least 3, or another --workdir"),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(config, **change), tmp_path)
    assert [(tmp_path / name).read_text() for name in names] == recorded
    (tmp_path / "model.onnx").unlink()
    train(dataclasses.replace(config, checkpoint_minutes=1.0), tmp_path)
    assert (tmp_path / "config.json").read_text() == recorded[0]
    assert (tmp_path / "model.onnx").exists()


def test_a_run_can_be_extended_but_not_changed_into_another(config, tmp_path):
    train(config, tmp_path)
    slower = dataclasses.replace(config.optim, learning_rate=0.05)
    train(dataclasses.replace(config, epochs=4, optim=slower), tmp_path)
    changed = r"until step (\d+) sgd, learning rate 0\.2, .*; then sgd, learning rate 0\.05"
    for page in ("model/README.md", "report.html"):
        found = re.search(changed, (tmp_path / page).read_text())
        assert found, page
        assert int(found[1]) == read_log(tmp_path, "validation")[2]["step"]
    assert [line["epoch"] for line in read_log(tmp_path, "validation")] == [1, 2, 3, 4]
    before = steps_saved(tmp_path)
    with pytest.raises(UserError, match=r"model\.widths"):
        train(dataclasses.replace(config, model=ModelConfig(widths=(8, 8), blocks=(0, 1))), tmp_path)
    with pytest.raises(UserError, match=r"training/opt_state/\S+"):
        train(dataclasses.replace(config, optim=OptimConfig(name="adam", learning_rate=0.01)), tmp_path)
    assert steps_saved(tmp_path) == before


def test_a_workdir_that_cannot_be_resumed_is_reported_before_the_pictures_are_decoded(config, tmp_path, monkeypatch):
    train(dataclasses.replace(config, epochs=1), tmp_path / "run")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(data, "load", lambda config: pytest.fail("decoded"))
    with pytest.raises(UserError, match="batch_size 64, not 32"):
        train(dataclasses.replace(config, batch_size=32), tmp_path / "run")
    with pytest.raises(UserError, match="cannot be written"):
        train(config, tmp_path / "file" / "run")
    with Workdir(tmp_path / "run").locked(), pytest.raises(UserError, match="another process is training"):
        train(config, tmp_path / "run")


def test_a_process_takes_what_the_first_has_decided_and_its_paths(config, tmp_path, monkeypatch):
    decided = dataclasses.replace(config, batch_size=6, data=dataclasses.replace(config.data, source="a", crop=None))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(preparation, "lead", lambda _: to_json(decided))
    found = preparation._resolve_together(config, Workdir(tmp_path))
    assert (found.batch_size, found.data.source) == (6, "digits")


def test_pictures_added_between_two_sessions_are_reported(config, tmp_path):
    folder = write_class_folders(tmp_path / "pictures", count=6, size=8)
    own = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder)), epochs=1, batch_size=4)
    train(own, tmp_path / "run")
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "00.png")
    with pytest.raises(UserError, match=r"were 10 for training and 2 for validation, now there are 11 for training"):
        train(dataclasses.replace(own, epochs=2), tmp_path / "run")
    (folder / "cat" / "00.png").unlink()
    train(dataclasses.replace(own, epochs=2), tmp_path / "run")
    assert [line["epoch"] for line in read_log(tmp_path / "run", "validation")] == [1, 2]


def test_a_batch_larger_than_the_set_is_reduced_for_all_of_the_run(config, tmp_path, capsys):
    folder = write_class_folders(tmp_path / "pictures", count=6, size=8)
    own = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder)), epochs=1)
    train(own, tmp_path / "run")
    assert "batch_size is 64, reduced to 10: there are 10 training pictures" in capsys.readouterr().err
    assert Workdir(tmp_path / "run").read_config().batch_size == 10
    train(dataclasses.replace(own, epochs=2), tmp_path / "run")
    assert "reduced" not in capsys.readouterr().err
    assert [line["step"] for line in read_log(tmp_path / "run", "validation")] == [1, 2]
    with pytest.raises(UserError, match="batch_size 10, not 5"):
        train(dataclasses.replace(own, batch_size=5), tmp_path / "run")


def test_a_run_without_progress_ends_early_and_stays_ended(config, tmp_path, capsys):
    # At this rate nothing is learned.
    stuck = dataclasses.replace(
        config, optim=OptimConfig(learning_rate=1e-12), epochs=9, early_stopping=2, balance=True
    )
    train(stuck, tmp_path)
    assert "stopped early: no better validation top-1 in the last 2 of 3 epochs" in capsys.readouterr().err
    assert [line["epoch"] for line in read_log(tmp_path, "validation")] == [1, 2, 3]
    assert (tmp_path / "model.onnx").exists()
    written = (tmp_path / "metrics.jsonl").read_text()
    train(stuck, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == written
    train(dataclasses.replace(stuck, early_stopping=3), tmp_path)
    assert [line["epoch"] for line in read_log(tmp_path, "validation")] == [1, 2, 3, 4]


def test_a_run_that_ended_early_records_nothing_without_a_step(config, tmp_path, monkeypatch, capsys):
    stuck = dataclasses.replace(config, optim=OptimConfig(learning_rate=1e-12), epochs=9)
    capped = dataclasses.replace(stuck, early_stopping=2)
    train(capped, tmp_path)
    names = ("config.json", "environment.json", "metrics.jsonl")
    recorded = [(tmp_path / name).read_text() for name in names]
    faster = OptimConfig(learning_rate=2e-12)
    for change, message in (
        (
            {"optim": faster},
            r"no step left .*rate 1e-12, not 2e-12; give the same settings, a higher --early_stopping or",
        ),
        (
            {"epochs": 12},
            r"no step left to take, and was trained with epochs 9, not 12; give the same settings, a higher",
        ),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(capped, **change), tmp_path)
    # The same command with other packages, and without room for a checkpoint.
    with monkeypatch.context() as patch:
        patch.setattr(workdir_module, "environment", lambda: {"jax": "99"})
        patch.setattr(training, "_check_room", lambda state, folder: pytest.fail("looked for room"))
        capsys.readouterr()
        train(capped, tmp_path)
    assert "the run has ended at step 75 of 225: no step left to take" in capsys.readouterr().err
    assert [(tmp_path / name).read_text() for name in names] == recorded
    assert not (tmp_path / "earlier_sessions.json").exists()
    # What lets it go on is accepted, and other settings with it.
    train(dataclasses.replace(capped, early_stopping=3, optim=faster), tmp_path)
    assert [line["epoch"] for line in read_log(tmp_path, "validation")] == [1, 2, 3, 4]
    assert [session.end for session in read_sessions(Workdir(tmp_path))] == [75, None]


def test_a_run_that_is_ended_early_by_a_new_setting_names_it(config, tmp_path):
    stuck = dataclasses.replace(config, optim=OptimConfig(learning_rate=1e-12), epochs=4)
    with jaxcnn.begin(dataclasses.replace(stuck, epochs=3), tmp_path) as (run, state, checkpoints, log):
        fit(run, state, checkpoints=checkpoints, log=log)
    with pytest.raises(UserError, match="no step left to take, and was trained with epochs 3, not 4"):
        train(dataclasses.replace(stuck, early_stopping=2), tmp_path)
    longer = dataclasses.replace(Workdir(tmp_path).read_config(), epochs=4)
    Workdir(tmp_path).record(longer, Workdir(tmp_path).read_classes())
    train(dataclasses.replace(stuck, early_stopping=2), tmp_path)
    assert [line["epoch"] for line in read_log(tmp_path, "validation")] == [1, 2, 3]
    assert [session.config.early_stopping for session in read_sessions(Workdir(tmp_path))] == [2]
    assert "ends after 2 epochs without a better validation top-1" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("history", "patience", "stalled"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4, 0.51], 2, False),
        ([0.5, 0.4, 0.5], 2, True),
        ([0.9, 0.1, 0.2, 0.3], None, False),
    ],
)
def test_when_a_run_is_stalled(history, patience, stalled):
    assert metrics_log.is_stalled(history, patience) == stalled


def test_classes_whose_names_are_not_utf8_are_exported(config, tmp_path):
    folder = write_class_folders(tmp_path / "pictures", count=6, size=8)
    (folder / "cat").rename(folder / os.fsdecode(b"caf\xe9"))
    own = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder)), epochs=1, batch_size=4)
    train(own, tmp_path / "run")
    assert Workdir(tmp_path / "run").read_classes().names == ("caf\ufffd", "dog")
    assert "caf\ufffd" in json.loads((tmp_path / "run" / "model.json").read_text(encoding="utf-8"))["names"]


@pytest.mark.parametrize("workdir", ["pictures/runs/folder", "pictures", "link/run"])
def test_a_workdir_among_the_pictures_is_refused_and_not_made(config, tmp_path, monkeypatch, workdir):
    write_class_folders(tmp_path / "pictures")
    (tmp_path / "link").symlink_to("pictures")
    monkeypatch.chdir(tmp_path / "pictures")
    local = dataclasses.replace(config, data=dataclasses.replace(config.data, source="."))
    with pytest.raises(
        UserError, match=r"workdir '.*' lies in data.source '.', among the pictures; give another --workdir"
    ):
        train(local, tmp_path / workdir)
    assert sorted(path.name for path in Path().iterdir()) == ["cat", "dog"]


def test_a_single_class_is_refused(config, tmp_path):
    source = str(write_class_folders(tmp_path / "pets", ("cat",)))
    with pytest.raises(UserError, match="pets has only the class 'cat'; a classifier needs two or more"):
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, source=source)), tmp_path / "run")


def test_a_run_on_cropped_photographs_is_the_same_in_its_workdir_its_file_and_the_server(config, tmp_path, capfd):
    pictures = write_class_folders(tmp_path / "pictures", count=40, size=24)
    for path in pictures.rglob("*.png"):
        Image.open(path).resize((37, 24)).save(path)
    cropped = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=str(pictures), image_size=16, fit="crop", crop=0.8),
        augment=AugmentConfig(flip=True, crop_scale=(0.5, 1.0), trivial=True),
        batch_size=32,
    )
    workdir = tmp_path / "run"
    evaluation = train(cropped, workdir)
    assert "decoded to 20x20 pixels, 0.1 MB in" in capfd.readouterr().err
    assert (evaluation.count, evaluation.top1 > 0.7) == (8, True)
    # The file says how pictures are prepared, and gives the same answers.
    path = next((pictures / "cat").iterdir())
    trained, exported = jaxcnn.load(workdir).predict(path), jaxcnn.load(workdir / "model.onnx").predict(path)
    assert trained.probability == pytest.approx(exported.probability, abs=1e-4)
    served = serving.load(workdir / "model.onnx", max_batch=2, threads=1)
    assert served.resize == ServedResize(mode="crop", side=20)
    (pixels,) = decode_pictures([("", path.read_bytes())], served, Settings(), WANTED)
    answered = served.run(pixels[None], ["probabilities"])["probabilities"]
    assert answered.max() == pytest.approx(exported.probability, abs=1e-6)
    # The fit is a fixed setting; left out, it is the run's.
    left_out = dataclasses.replace(cropped.data, fit=None, crop=None)
    assert train(dataclasses.replace(cropped, data=left_out), workdir).top1 == evaluation.top1
    stretched = dataclasses.replace(cropped.data, fit="stretch", crop=None)
    with pytest.raises(
        UserError, match=r"holds a run with data\.fit 'crop', not 'stretch'; give the same value, or another"
    ):
        train(dataclasses.replace(cropped, data=stretched), workdir)
    with pytest.raises(UserError, match=r"data\.fit is stretch, but the model takes crop; give crop or leave it out"):
        evaluate(workdir, stretched)


def test_pictures_are_prepared_as_the_initial_weights_were_trained_by_others(tmp_path, monkeypatch):
    weights = SimpleNamespace(crop=0.9, filter="bilinear")
    monkeypatch.setattr(preparation, "read_pretrained", lambda name: weights if name == "others" else None)
    folder = Workdir(tmp_path / "run")
    photographs = Config(data=DataConfig(image_size=224), init_from="others")
    prepared = preparation._resolve(photographs, folder)
    assert prepared.data == DataConfig(image_size=224, fit="crop", crop=0.9, filter="bilinear")
    ours = preparation._resolve(dataclasses.replace(photographs, init_from="shipped"), folder)
    assert ours.data == DataConfig(image_size=224, fit="crop", crop=0.875, filter="bicubic")
    # What the settings say goes first; a run that is resumed does not look for the weights.
    given = dataclasses.replace(photographs, data=DataConfig(image_size=224, fit="crop", filter="bicubic"))
    found = preparation._resolve(given, folder)
    assert found.data == DataConfig(image_size=224, fit="crop", crop=0.9, filter="bicubic")
    folder.record(prepared, Classes(("cat", "dog"), (), "pets", ""))
    monkeypatch.setattr(preparation, "read_pretrained", None)
    assert preparation._resolve(photographs, folder) == prepared


def test_a_disk_without_room_for_a_checkpoint_is_refused_before_the_first_step(config, tmp_path, monkeypatch):
    data.load(config.data)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(
        UserError, match=r"too full: .* of a checkpoint take 0\.\d MB in .*/run, where 0\.0 MB are free"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_progressive_resolution_trains_and_evaluates_at_full_size(config, tmp_path):
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, image_size=12), resolutions=((0.0, 8), (0.5, 12))
    )
    evaluation = train(config, tmp_path)
    assert evaluation is not None
    assert evaluation.top1 > 0.5


def test_the_last_epochs_mix_no_pairs(config):
    def losses(augment):
        run = prepare(dataclasses.replace(config, augment=augment, epochs=4), data.load(config.data))
        batch = data.Batch(run.dataset.train.images[:64], run.dataset.train.labels[:64])
        return [float(take_step(run, initial_state(run), batch, epoch=epoch)[1].loss) for epoch in range(4)]

    mixed, clean = losses(AugmentConfig(mixup=1.0)), losses(AugmentConfig())
    assert losses(AugmentConfig(mixup=1.0, mix_until=0.75)) == [*mixed[:3], clean[3]]
    assert mixed[3] != clean[3]


def test_divergence_is_located_and_nothing_of_it_is_saved(config, tmp_path):
    wild = dataclasses.replace(config, optim=OptimConfig(learning_rate=1e30, schedule="constant"))
    with pytest.raises(
        UserError, match=r"training diverged: in step \d+ \(epoch 0\.\d+, .*1e\+30\) .* is the first value that is not"
    ) as caught:
        train(wild, tmp_path)
    assert "\n" not in str(caught.value)
    assert steps_saved(tmp_path) == []


def test_divergence_in_the_last_step_of_an_epoch_is_not_saved(config, tmp_path, monkeypatch):
    # Loss and gradients of the step are finite, but not the parameters that it makes.
    diverged = SimpleNamespace(scalars=lambda: {"loss": float("nan"), "top1": 0.1, "top5": 0.5, "ece": 0.0})
    monkeypatch.setattr(loop, "evaluate_variables", lambda run, variables, **_: diverged)
    with pytest.raises(UserError, match=r"training diverged: after step 25 the validation loss is nan; earlier"):
        train(config, tmp_path)
    assert steps_saved(tmp_path) == []
    assert read_log(tmp_path, "validation") == []


def test_divergence_within_an_epoch_is_reported_before_a_save(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_epoch, "LOG_SECONDS", 3600.0)
    wild = OptimConfig(learning_rate=1e30, schedule="constant")
    with pytest.raises(UserError, match="training diverged"):
        train(dataclasses.replace(config, optim=wild, checkpoint_minutes=1e-9), tmp_path)
    assert load_last(tmp_path).finite


def test_batches_are_on_the_device_before_their_step(config, tmp_path, monkeypatch):
    placed = []

    def watched(run, state, batch, *, epoch):
        placed.extend(isinstance(rows, jax.Array) for rows in batch)
        return take_step(run, state, batch, epoch=epoch)

    monkeypatch.setattr(run_epoch, "take_step", watched)
    train(dataclasses.replace(config, epochs=1), tmp_path)
    assert placed == [True] * len(placed) != []


@pytest.mark.run
def test_records_are_on_the_disk_before_the_checkpoint_of_their_steps(config, tmp_path, monkeypatch):
    """A run that is resumed after a power cut has all records up to its checkpoint."""
    done, save, sync = [], Checkpoints.save, MetricsLog.sync
    monkeypatch.setattr(Checkpoints, "save", lambda *args, **options: [save(*args, **options), done.append("save")])
    monkeypatch.setattr(MetricsLog, "sync", lambda log: [sync(log), done.append("sync")])
    train(dataclasses.replace(config, epochs=1, checkpoint_minutes=1e-9), tmp_path)
    assert done == ["sync", "save"] * (len(done) // 2)
    assert len(done) > 4


def test_every_record_covers_the_steps_since_the_last(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_epoch, "LOG_SECONDS", 0.0)
    pictures = dataclasses.replace(config.data, image_size=12)
    config = dataclasses.replace(config, data=pictures, epochs=2, resolutions=((0.0, 8), (0.5, 12)))
    train(config, tmp_path)
    run = prepare(config, data.load(config.data))
    state, expected = initial_state(run), []
    with contextlib.closing(
        data.train_batches(run.dataset.train, seed=config.seed, batch_size=config.batch_size, start_step=0)
    ) as batches:
        for step, batch in zip(range(run.total_steps), batches, strict=False):
            epoch = step // run.steps_per_epoch
            state, metrics = take_step(run, state, batch, epoch=epoch)
            loss, top1 = (float(total) / config.batch_size for total in (metrics.loss, metrics.correct))
            values = {
                "loss": loss,
                "top1": top1,
                "learning_rate": float(run.schedule(step)),
                "resolution": (8, 12)[epoch],
            }
            expected.append(values | {"step": step + 1, "epoch": (step + 1) / run.steps_per_epoch})
    logged = read_log(tmp_path, "train")
    assert [{key: line[key] for key in expected[0]} for line in logged] == [
        pytest.approx(values) for values in expected
    ]


def test_the_speed_of_the_steps_leaves_out_saves_and_every_save_has_a_record(config, tmp_path, monkeypatch, capsys):
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *args, **options: [time.sleep(2), save(*args, **options)])
    monkeypatch.setattr(run_epoch, "LOG_SECONDS", 3600.0)
    train(dataclasses.replace(config, epochs=1, batch_size=400, checkpoint_minutes=1e-9), tmp_path)
    log = metrics_log.read_log(tmp_path / "metrics.jsonl")
    assert [record.step for record in log.train] == [1, 2, 3, 4]
    assert log.seconds(400) < 2
    (speed,) = re.findall(r"; ([\d,]+) images/s\n", capsys.readouterr().err)
    assert int(speed.replace(",", "")) > 4 * 400 / 2


def test_a_reader_of_the_records_who_has_gone_costs_no_step(config, tmp_path, monkeypatch, capsys):
    lines = []

    def write(line):
        lines.append(line)
        if len(lines) > 2:  # The start, and the first step.
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(run_epoch, "LOG_SECONDS", 0.0)
    with (tmp_path / "records").open("w") as echo:
        monkeypatch.setattr(echo, "write", write)
        assert train(config, tmp_path, echo=echo) is None
    assert steps_saved(tmp_path) == [3]
    assert [line["step"] for line in read_log(tmp_path, "train")] == [1, 2, 3]
    said = "stopped as its records cannot be printed and saved at step 3; run again to resume\n"
    assert said in capsys.readouterr().err
    assert train(config, tmp_path) is not None


@pytest.mark.parametrize("after", ["the start", "an epoch"])
def test_a_command_whose_output_nobody_reads_saves_and_has_status_1(tmp_path, cache_dir, after):
    options = ["--data.cache_dir", cache_dir, "--workdir", str(tmp_path), "--epochs", "5000", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", *COMMAND, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while '"validation"' not in process.stdout.readline() and after == "an epoch":
        pass
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1, said
    assert f"stopped as its records cannot be printed and saved at step {steps_saved(tmp_path)[-1]:,}; run" in said
    assert "Traceback" not in said


def test_a_run_whose_log_nobody_reads_goes_on(tmp_path, cache_dir):
    process = start(tmp_path, cache_dir, "--epochs", "5000")
    wait_for_checkpoint(process, tmp_path)
    process.stdout.close()
    wait_for_checkpoint(process, tmp_path, after=steps_saved(tmp_path)[-1] + 100)
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert steps_saved(tmp_path)[-1] == read_log(tmp_path, "train")[-1]["step"]


def test_killed_and_resumed_is_the_same_as_never_killed(tmp_path, cache_dir):
    options = ("--epochs", "3")
    whole = start(tmp_path / "whole", cache_dir, *options)
    output = finish(whole)
    assert whole.returncode == 0, output
    reached = kill_after_checkpoint(tmp_path / "killed", cache_dir, *options)
    assert reached < 75
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')  # A kill can leave half a line.
    resumed = start(tmp_path / "killed", cache_dir, *options)
    output = finish(resumed)
    assert resumed.returncode == 0, output
    assert f"resuming at step {reached}" in output
    a, b = (load_last(tmp_path / name) for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_stopped_in_evaluations_and_resumed_is_the_same_as_never_stopped(config, tmp_path, monkeypatch, capsys):
    whole = train(config, tmp_path / "whole")
    evaluate_batch, stopped = validation.eval_step, tmp_path / "stopped"
    # An evaluation has three batches; the last session but one evaluates an epoch again, and stops in that.
    for batch, saved, measured in ((2, [25], 0), (5, [25, 50], 1), (2, [25, 50], 1), (5, [50, 75], 2)):
        numbers = itertools.count(1)

        def stop_at(*arguments, batch=batch, numbers=numbers, **options):
            if (number := next(numbers)) == batch:
                os.kill(os.getpid(), signal.SIGTERM)
            assert number <= batch
            return evaluate_batch(*arguments, **options)

        monkeypatch.setattr(validation, "eval_step", stop_at)
        assert train(config, stopped) is None
        assert (steps_saved(stopped), len(read_log(stopped, "validation"))) == (saved, measured)
        assert f"stopped by SIGTERM and saved at step {saved[-1]}; run again to resume" in capsys.readouterr().err
    monkeypatch.setattr(validation, "eval_step", evaluate_batch)
    assert train(config, stopped).scalars() == whole.scalars()
    assert "resuming at step 75 of 75" in capsys.readouterr().err
    logs = [read_log(tmp_path / name, "validation") for name in ("whole", "stopped")]
    assert [line | {"time": 0} for line in logs[1]] == [line | {"time": 0} for line in logs[0]]
    assert steps_saved(stopped) == steps_saved(tmp_path / "whole")
    best = [load_model(tmp_path / name) for name in ("whole", "stopped")]
    assert (best[0].step, best[0].metrics) == (best[1].step, best[1].metrics)
    for load_state in (lambda path: load_model(path).variables, load_last):
        jax.tree.map(np.testing.assert_array_equal, *(load_state(tmp_path / name) for name in ("whole", "stopped")))


def test_encoded_pictures_train_as_decoded_ones_do_and_resume_exactly(tmp_path, cache_dir):
    decoded = start(tmp_path / "decoded", cache_dir, "--epochs", "2", "--data.store", "decoded")
    output = finish(decoded)
    assert decoded.returncode == 0, output
    assert "decoded to 8x8 pixels, " in output
    reached = kill_after_checkpoint(tmp_path / "encoded", cache_dir, "--epochs", "2", "--data.store", "encoded")
    assert reached < 50
    # Left out, the store is the run's.
    resumed = start(tmp_path / "encoded", cache_dir, "--epochs", "2")
    output = finish(resumed)
    assert resumed.returncode == 0, output
    assert f"resuming at step {reached}" in output
    assert re.search(r"encoded, .* MB, and decoded to 8x8 pixels in every epoch, in ", " ".join(output.split()))
    a, b = (load_last(tmp_path / name) for name in ("decoded", "encoded"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    last = [read_log(tmp_path / name, "validation")[-1] for name in ("decoded", "encoded")]
    assert [last[0][name] for name in ("loss", "top1")] == [last[1][name] for name in ("loss", "top1")]


def test_a_loop_of_ones_own_reaches_the_accuracy_of_the_digits(tmp_path):
    config = jaxcnn.presets.digits()
    with jaxcnn.begin(config, tmp_path) as (run, state, checkpoints, log):
        for epoch in range(int(state.step) // run.steps_per_epoch, config.epochs):
            batches = jaxcnn.train_batches(
                run.dataset.train, seed=config.seed, batch_size=config.batch_size, start_step=int(state.step)
            )
            with contextlib.closing(batches):
                for batch in itertools.islice(batches, run.steps_per_epoch):
                    state, metrics = jaxcnn.take_step(run, state, batch, epoch=epoch)
            jaxcnn.check_finite(run, state)
            scores = jaxcnn.evaluate_variables(run, state.evaluated).scalars()
            log.write(jaxcnn.ValidationRecord(step=int(state.step), epoch=epoch + 1.0, **scores))
            checkpoints.save(state, metrics=scores)
        evaluation = jaxcnn.conclude(run, tmp_path)
    assert float(metrics.correct) > 0.95 * config.batch_size
    assert evaluation.top1 > 0.98
    assert all((tmp_path / name).stat().st_size for name in ("evaluation.json", "report.html", "model.onnx"))


def train_an_epoch(config: Config, workdir: Path, *, then=lambda run: None) -> None:
    """Takes the steps of one more epoch in a loop of one's own."""
    with jaxcnn.begin(config, workdir) as (run, state, checkpoints, log):
        epoch = int(state.step) // run.steps_per_epoch
        batches = jaxcnn.train_batches(
            run.dataset.train, seed=config.seed, batch_size=config.batch_size, start_step=int(state.step)
        )
        with contextlib.closing(batches):
            for batch in itertools.islice(batches, run.steps_per_epoch):
                state, _ = jaxcnn.take_step(run, state, batch, epoch=epoch)
        scores = jaxcnn.evaluate_variables(run, state.evaluated).scalars()
        log.write(jaxcnn.ValidationRecord(step=int(state.step), epoch=epoch + 1.0, **scores))
        checkpoints.save(state, metrics=scores)
        then(run)


def test_a_run_that_is_concluded_before_its_last_epoch_is_finished_until_it_goes_on(config, tmp_path, monkeypatch):
    sent = []

    class Tracker:
        def __init__(self, uri):
            pass

        def start(self, run):
            pass

        def write(self, values, *, step, time):
            pass

        def write_files(self, *, model, report):
            sent.append(model.name)

        def end(self, outcome):
            sent.append(outcome)

    monkeypatch.setattr(tracking, "TRACKERS", {"mlflow": Tracker})
    monkeypatch.setattr(preparation, "check_clients", lambda log: None)
    tracked = dataclasses.replace(config, log=LogConfig(mlflow="http://127.0.0.1:1"))
    train_an_epoch(tracked, tmp_path)
    assert not is_finished(Workdir(tmp_path))
    train_an_epoch(tracked, tmp_path, then=lambda run: jaxcnn.conclude(run, tmp_path))
    assert sent == ["stopped", "model.onnx", "finished"]
    assert is_finished(Workdir(tmp_path))
    (recorded,) = find_runs([tmp_path])
    assert recorded.evaluation is not None
    compare_command([str(tmp_path), "--output", str(tmp_path / "comparison.md")])
    assert "(unfinished)" not in (tmp_path / "comparison.md").read_text()
    # A session that goes on, even if it is killed before its first record.
    with pytest.raises(InterruptedError), jaxcnn.begin(tracked, tmp_path):
        raise InterruptedError
    assert not is_finished(Workdir(tmp_path))
    train(config, tmp_path)
    assert [line["epoch"] for line in read_log(tmp_path, "validation")] == [1, 2, 3]
    assert is_finished(Workdir(tmp_path))
    assert len(read_log(tmp_path, "end")) == 1  # The last epoch needs none.


def load_last(workdir: Path) -> TrainState:
    run = prepare(Workdir(workdir).read_config(), data.load(Workdir(workdir).read_config().data))
    with open_checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(initial_state(run))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_cleanly(tmp_path, cache_dir, number):
    process = start(tmp_path, cache_dir, "--epochs", "5000", "--checkpoint_minutes", "0.01")
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 0, output
    reached = steps_saved(tmp_path)[-1]
    assert f"stopped by {number.name} and saved at step {reached:,}; run again to resume" in output
    assert output.count("stopping after this step; again to stop at once\n") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "model.onnx").exists()


SIGNALLED = """
import importlib, os, sys
from jaxcnn import cli
from jaxcnn.train import main
module, name, number = importlib.import_module(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
function = getattr(module, name)

def stop(*arguments, **options):
    os.kill(os.getpid(), number)
    return function(*arguments, **options)

setattr(module, name, stop)
cli.run(main, "train")
"""


def test_a_signal_after_the_last_epoch_ends_at_once_and_the_next_run_takes_no_step(tmp_path, cache_dir):
    options = ("--epochs", "2")
    whole = start(tmp_path / "whole", cache_dir, *options)
    output = finish(whole)
    assert whole.returncode == 0, output
    stopped, logs = tmp_path / "stopped", []
    for place, number in (
        ("jaxcnn.training calibrate", signal.SIGTERM),
        ("jaxcnn.training write_predictions", signal.SIGHUP),
        ("export.workdir verify", signal.SIGINT),
    ):
        program = ("-c", SIGNALLED, *place.split(), str(int(number)))
        process = start(stopped, cache_dir, *options, program=program)
        output = finish(process)
        assert process.returncode == 128 + number, output
        said = [line for line in output.splitlines() if line != "train: interrupted"]
        assert said[-1] == "the run is trained and saved; run again to evaluate and export it", output
        assert not (stopped / "model.onnx").exists()
        logs.append((stopped / "metrics.jsonl").read_bytes())
    process = start(stopped, cache_dir, *options)
    output = finish(process)
    assert process.returncode == 0, output
    assert "the run has ended at step 44 of 44: no step left to take" in output
    assert {*logs, (stopped / "metrics.jsonl").read_bytes()} == {logs[0]}
    names = [
        {path.name for path in folder.iterdir() if "tfevents" not in path.name}
        for folder in (tmp_path / "whole", stopped)
    ]
    assert names[0] == names[1]
    evaluations = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "stopped")]
    assert evaluations[0] == evaluations[1] | {"model": evaluations[0]["model"]}
