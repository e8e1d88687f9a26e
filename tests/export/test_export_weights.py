"""python -m export -o NAME.safetensors: the weights of a run, or the mean of several."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from runs import CLASSES

import export.workdir
from export import __main__ as program
from jaxcnn import run_metadata
from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.workdir import Workdir
from jaxcnn.run_metadata import describe_run
from jaxcnn.weights import read_weights


def test_command_exports_weights_by_the_ending(run, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    program.main([str(run), "-o", str(path)])
    assert capsys.readouterr().out == f"{path}: 0.0 MB, to train from with --init_from {path}\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    weights, trained = read_weights(str(path)), load_model(run)
    assert (weights.names, weights.wnids, weights.model) == (CLASSES.names, CLASSES.wnids, trained.config.model)
    filled = weights.fill(trained.variables, with_head=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2**-11 * np.abs(b).max()),
                 filled, trained.variables)  # fmt: skip
    images = np.random.default_rng(5).integers(0, 256, (4, 8, 8, 3), np.uint8)
    compute = jax.jit(partial(trained.model.apply, train=False))
    logits = [compute(variables, images) for variables in (filled, trained.variables)]
    np.testing.assert_allclose(*logits, rtol=0, atol=2e-3 * np.abs(logits[1]).max())


def test_the_weights_say_what_they_are(run, tmp_path):
    record = Workdir(run).read_config()
    Workdir(tmp_path / "run").record(dataclasses.replace(record, init_from="/home/me/other.safetensors"), CLASSES)
    (tmp_path / "run" / "checkpoints").symlink_to(run / "checkpoints")
    path = export.workdir.export_weights(tmp_path / "run", tmp_path / "a.safetensors")
    with safetensors.safe_open(path, framework="np") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    same = json.loads(json.dumps(describe_run(Workdir(run), load_model(run)).to_values()))
    assert same["step"] == 7
    same["config"]["init_from"] = "other.safetensors"
    same["config"]["model"] |= {"widths": [4, 6], "blocks": [1, 0]}
    same["config"]["resolutions"] = []
    same["trainings"][0]["recipe"]["schedule"] += ", initial weights from other.safetensors"
    assert metadata == same | {"date": metadata["date"], "checksum": metadata["checksum"]}
    assert "/home" not in json.dumps(metadata)
    assert (metadata["metrics"], metadata["license"]) == ({"top1": 0.5, "loss": 1.25}, "CC-BY-4.0")


@pytest.mark.parametrize(("source", "name"), [("runs/a", "a"), (".", "."), ("/", "/"), (None, None)])
def test_a_source_of_weights_is_recorded_by_its_name(source, name):
    needs = {} if source is None else {"freeze": "backbone", "fit_head": True}
    assert run_metadata._portable(Config(init_from=source, **needs)).init_from == name


def test_the_mean_with_other_weights(run, tmp_path):
    trained = load_model(run)
    other = export.workdir.export_weights(run, tmp_path / "a.safetensors")
    with safetensors.safe_open(other, framework="np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    with pytest.raises(UserError, match=r"a\.safetensors has weights of the same training as .*; leave it out"):
        program.main([str(run), "-o", str(tmp_path / "mean.safetensors"), "--average", str(other)])
    trainings = json.loads(metadata["trainings"])
    metadata["trainings"] = json.dumps([*trainings, trainings[0] | {"recipe": {"schedule": "another"}}])
    safetensors.numpy.save_file({name: 3 * values for name, values in tensors.items()}, other, metadata)
    with pytest.raises(UserError, match=r"a\.safetensors is damaged: it differs from its checksum"):
        program.main([str(run), "-o", str(tmp_path / "mean.safetensors"), "--average", str(other)])
    del metadata["checksum"]
    safetensors.numpy.save_file({name: 3 * values for name, values in tensors.items()}, other, metadata)
    program.main([str(run), "-o", str(tmp_path / "mean.safetensors"), "--average", str(other)])
    mean = read_weights(str(tmp_path / "mean.safetensors"))
    expected = jax.tree.map(lambda values: 2 * np.asarray(values), trained.variables)
    found = mean.fill(trained.variables, with_head=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), found, expected)
    assert [training.recipe.get("weights") for training in mean.trainings][-1] is not None
    with safetensors.safe_open(tmp_path / "mean.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["metrics"]) == {}
    with pytest.raises(UserError, match=r"--average is for weights; give a name that ends with .safetensors with -o"):
        program.main([str(run), "-o", str(tmp_path / "m.onnx"), "--average", str(other)])


@pytest.mark.parametrize("name", ["shipped", "efficientnet_lite0"])
def test_a_run_with_the_name_of_weights_is_averaged_itself(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).symlink_to(run)
    with pytest.raises(UserError, match=f"has weights of the same training as {name}; leave it out"):
        export.workdir.export_weights(Path(name), Path("mean.safetensors"), average=[str(run)])


def test_weights_that_cannot_be_written_leave_the_older_ones(run, tmp_path, monkeypatch):
    path = export.workdir.export_weights(run, tmp_path / "a.safetensors")
    older = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"a.safetensors cannot be written: No .* free\); make room and run the same"):
        export.workdir.export_weights(run, path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.safetensors", older)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.safetensors", "--quantize", "int8"], "--quantize is for a model, not for the weights in a.safet"),
        (["-o", "a.safetensors", "--features"], "--features is for a model, "),
        (["-o", "a.safetensors", "--heatmap"], "--heatmap is for a model, "),
        (["-o", "a.safetensors", "--views", "2"], "--views is for a model, "),
        (["-o", "a.pt"], "a.pt does not end with .onnx or .safetensors; give such a name with -o"),
        (["-o", "no/such/folder/a.safetensors"], "a.safetensors cannot be written: No such file or directory; give"),
    ],
)
def test_options_for_models_are_refused_with_weights(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        program.main([str(run), *options])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
