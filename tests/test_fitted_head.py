"""Runs whose head is fitted before the first step: frozen, trained further, resumed, refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from pictures import write_class_folders
from test_weights import metadata_of, variables_of

from jaxcnn import data, linear_head
from jaxcnn.config import Config, DataConfig, ModelConfig, OptimConfig
from jaxcnn.errors import UserError
from jaxcnn.fitted_head import compute_features, start_with_fitted_head
from jaxcnn.range_test import run_range_test
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.metrics_log import read_log
from jaxcnn.state import TrainState
from jaxcnn.training import train
from jaxcnn.training_run import initial_state, prepare
from jaxcnn.weights import write_weights

MODEL = ModelConfig(widths=(4, 6), blocks=(1, 0))


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """Two strengths are enough for a run; `test_linear_head.py` tests the search."""
    monkeypatch.setattr(linear_head, "STRENGTHS", (1e-2, 1e-3))


@pytest.fixture
def config(tmp_path):
    write_weights(
        tmp_path / "a.safetensors",
        variables_of(MODEL),
        metadata_of(config=Config(data=DataConfig(source="pets"), model=MODEL)),
    )
    return Config(
        data=DataConfig(image_size=8, cache_dir=str(tmp_path / "cache"), validation_fraction=0.9),
        model=MODEL,
        optim=OptimConfig(learning_rate=0.01, ema_decay=0.9),
        init_from=str(tmp_path / "a.safetensors"),
        freeze="backbone",
        epochs=2,
    )


def run_of(config):
    return prepare(config, data.load(config.data))


def state_of(run) -> TrainState:
    variables = variables_of(MODEL, classes=10)
    state = initial_state(run)
    return state._replace(variables=jax.tree.map(lambda _, leaf: jax.numpy.asarray(leaf), state.variables, variables))


def test_only_the_head_changes_and_it_classifies_the_training_pictures(config):
    run = run_of(config)
    before = state_of(run)
    kept = jax.tree.map(np.asarray, before.variables)
    after, head = start_with_fitted_head(run, before)
    assert after.average is not None
    for variables in (after.variables, after.average):
        np.testing.assert_array_equal(variables["params"]["classifier"]["kernel"], head.kernel)
        changed = jax.tree.map(lambda old, new: not np.array_equal(old, new), kept, variables)
        assert changed["params"].pop("classifier") == {"bias": True, "kernel": True}
        assert not any(jax.tree.leaves(changed))
    features = compute_features(run, after.variables)
    assert features.shape == (len(run.dataset.train), 6)
    logits = features @ head.kernel + head.bias
    assert (logits.argmax(1) == run.dataset.train.labels).mean() > 0.2  # Chance is .1; the backbone is noise.


@pytest.mark.run
def test_a_frozen_run_takes_no_step_and_its_file_has_the_head(config, tmp_path):
    workdir = tmp_path / "run"
    evaluation = train(config, workdir)
    assert evaluation is not None
    log = read_log(workdir / "metrics.jsonl")
    assert (log.train, [record.step for record in log.validation], len(log.heads)) == ([], [0], 1)
    assert log.validation[0].top1 == pytest.approx(evaluation.top1)
    assert load_model(workdir).step == 0
    names = ("model.onnx", "evaluation.json", "report.html", "calibration.json")
    assert all((workdir / name).stat().st_size for name in names)
    described = f"features with penalty {log.heads[0].strength:.2g} for each picture and feature"
    for page in ("report.html", "model/README.md"):
        assert described in (workdir / page).read_text()
        assert "no training steps: all but the classifier is frozen" in (workdir / page).read_text()
        assert "learning rate 0.01" not in (workdir / page).read_text()
        assert "No choice of the training was based on these pictures." in (workdir / page).read_text()
        assert "on these same pictures" not in (workdir / page).read_text()
    # The same again changes nothing, other settings are refused.
    written = (workdir / "metrics.jsonl").read_text()
    train(config, workdir)
    assert (workdir / "metrics.jsonl").read_text() == written
    for change, message in (
        ({"freeze": "none"}, "holds a run with freeze 'backbone', not 'none'"),
        ({"label_smoothing": 0.1}, "no step left"),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(config, **change), workdir)


@pytest.mark.run
def test_one_picture_for_each_class_is_recorded_without_a_cross_validation(config, tmp_path, capsys):
    folder = write_class_folders(tmp_path / "pictures", count=2, size=8)
    pictures = dataclasses.replace(config.data, source=str(folder), validation_fraction=0.5)
    workdir = tmp_path / "run"
    train(dataclasses.replace(config, data=pictures), workdir)
    assert "nothing to cross-validate with; validation top-1 " in " ".join(capsys.readouterr().err.split())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (head, *_) = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert head.keys() == {"kind", "step", "epoch", "time", "standardised", "strength", "seconds"}
    log = read_log(workdir / "metrics.jsonl")
    assert ([head.top1 for head in log.heads], log.damaged) == ([None], [])
    described = "the strongest, as there was nothing to cross-validate with"
    for page in ("report.html", "model/README.md"):
        assert described in (workdir / page).read_text()


def test_the_range_test_starts_from_the_fitted_head(config, tmp_path):
    fitted, plain = (
        run_range_test(dataclasses.replace(config, freeze="none", fit_head=fit), tmp_path / "run", steps=10)
        for fit in (True, False)
    )
    assert fitted.losses[0] < plain.losses[0] - 0.2


@pytest.mark.run
def test_steps_follow_the_fitted_head(config, tmp_path):
    config = dataclasses.replace(config, freeze="none", fit_head=True)
    workdir = tmp_path / "run"
    train(config, workdir)
    log = read_log(workdir / "metrics.jsonl")
    assert [record.epoch for record in log.validation] == [0, 1, 2]
    assert log.steps_per_epoch == 2
    kinds = [json.loads(line)["kind"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert kinds[:3] == ["head", "validation", "start"]


def test_networks_without_a_linear_head_and_runs_without_weights_are_refused(config):
    run = run_of(config)
    state = initial_state(run)
    params = {**state.variables["params"], "classifier_norm": {}}
    with pytest.raises(UserError, match="the head of the network 'resnet' is more than a linear layer"):
        start_with_fitted_head(run, state._replace(variables={**state.variables, "params": params}))
    with pytest.raises(UserError, match="freeze is 'backbone'; it must be none without init_from"):
        dataclasses.replace(config, init_from=None)
