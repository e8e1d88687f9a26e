"""python -m export: a run's folder becomes a file that keeps its contract, or no file at all."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest

import export
import export.workdir
from jaxcnn import config as settings
from jaxcnn import models
from jaxcnn.checkpoint import load_model, open_checkpoints
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.optim import make_optimizer
from jaxcnn.state import create_state
from jaxcnn.workdir import Classes, Workdir

ROOT = Path(__file__).parents[2]
CLASSES = Classes(("cat", "dög", "eel"), ("n01", "n02", "n03"), "pets", "CC-BY-4.0")


def make_run(path, **model):
    config = Config(
        data=DataConfig(image_size=8, cache_dir="/home/me/cache"),
        model=ModelConfig(widths=(4, 6), blocks=(1, 0), **model),
    )
    Workdir(path).record(config, CLASSES)
    state = create_state(
        jax.random.key(0),
        model=models.build(config.model, classes=3),
        optimizer=make_optimizer(config.optim, steps=10),
        image_size=8,
        averaged=False,
    )
    random = np.random.default_rng(0)
    noise = jax.tree.map(lambda leaf: leaf + random.normal(0, 0.2, leaf.shape).astype(np.float32), state.variables)
    with open_checkpoints(path / "checkpoints") as checkpoints:
        checkpoints.save(state._replace(step=state.step + 7, variables=noise), metrics={"top1": 0.5, "loss": 1.25})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def file(run):
    return export.export_workdir(run)


def test_the_file_is_in_the_workdir_and_nothing_else_is_left(run, file):
    assert file == run / "model.onnx"
    assert not [each for each in run.iterdir() if "tmp" in each.name]


def test_the_file_keeps_the_contract(file):
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 8, 8, 3])
    outputs = [(each.name, each.type, each.shape) for each in session.get_outputs()]
    assert outputs == [(name, "tensor(float)", ["batch", 3]) for name in ("logits", "probabilities")]
    model = onnx.load(file)
    assert (model.ir_version, [(each.domain, each.version) for each in model.opset_import]) == (8, [("", 17)])


def test_the_file_says_what_it_is(run, file):
    found = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    values = {key: json.loads(value) for key, value in found.items()}
    date, description, version = values.pop("date"), values.pop("description"), values.pop("version")
    assert values == {
        "names": ["cat", "dög", "eel"],
        "wnids": ["n01", "n02", "n03"],
        "image_size": [8, 8],
        "resize": {"mode": "stretch", "filter": "bicubic"},
        "dataset": "pets",
        "metrics": {"top1": 0.5, "loss": 1.25},
        "config": json.loads(
            settings.to_json(Workdir(run).read_config()).replace("/home/me/cache", DataConfig().cache_dir)
        ),
        "license": "CC-BY-4.0",
        "author": "jaxcnn",
    }
    assert date[:2] == "20"
    assert "pets" in description
    assert version


def test_the_file_computes_what_the_run_does(run, file):
    trained = load_model(run)
    images = np.random.default_rng(5).integers(0, 256, (4, 8, 8, 3), np.uint8)
    logits, probabilities = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": images})
    expected = trained.model.apply(trained.variables, jnp.asarray(images), train=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_run_in_bfloat16_is_exported_in_float32(tmp_path):
    path = export.export_workdir(make_run(tmp_path / "run", precision="bfloat16"), tmp_path / "other.onnx")
    kinds = {each.data_type for each in onnx.load(path).graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def spoil(monkeypatch):
    def spoiled(*arguments):
        model = export.to_onnx(*arguments)
        bias = next(each for each in model.graph.initializer if each.name.endswith("classifier/bias"))
        bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 0.1).tobytes()
        return model

    monkeypatch.setattr(export.workdir, "to_onnx", spoiled)


def test_a_file_that_fails_its_verification_never_appears(run, tmp_path, monkeypatch):
    spoil(monkeypatch)
    with pytest.raises(export.VerificationError, match=r"logits of a batch of 1 random inputs .* differs by 0.1"):
        export.export_workdir(run, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_its_verification_leaves_the_older_one(run, tmp_path, monkeypatch):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"older")
    spoil(monkeypatch)
    with pytest.raises(export.VerificationError):
        export.export_workdir(run, target)
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]


def test_an_older_file_is_replaced(run, tmp_path):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"older")
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    assert onnx.load(export.export_workdir(run, target, pictures=pictures)).graph.node


def test_a_path_that_cannot_be_written_is_the_users_mistake(run, tmp_path):
    with pytest.raises(UserError, match=r"missing/model.onnx cannot be written: No such file.*-o"):
        export.export_workdir(run, tmp_path / "missing" / "model.onnx")
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        export.export_workdir(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "export", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_command_exports_where_it_is_told(run, tmp_path):
    done = command(run, "-o", tmp_path / "a.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'a.onnx'}: 0.0 MB, verified")


@pytest.mark.parametrize("arguments", [["no/such/run"], [], [".", "--quantise"]])
def test_command_tells_mistakes_in_one_line(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("python -m export: ")


def test_command_without_a_translation_ends_with_status_1(run, capsys, monkeypatch):
    from export import __main__ as program

    def refuse(*arguments):
        raise export.UnsupportedError("cannot export the primitive 'sort'")

    monkeypatch.setattr(export.workdir, "to_onnx", refuse)
    with pytest.raises(SystemExit, match="python -m export: cannot export the primitive 'sort'"):
        program.main([str(run)])


def test_public_names():
    assert sorted(export.__all__) == ["UnsupportedError", "VerificationError", "export_workdir", "to_onnx"]
    assert all(hasattr(export, name) for name in export.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        export.no_such_name  # noqa: B018
