"""The choice of `auto` precision on a CPU: measured once, kept on disk."""

import json

import pytest

from jaxcnn import loop
from jaxcnn.config import ModelConfig
from jaxcnn.models import registry
from jaxcnn.ops import precision
from jaxcnn.ops.precision import Measured, measured_here
from jaxcnn.run.progress import TrainProgress


@pytest.fixture
def measurements(tmp_path, monkeypatch):
    """A machine with instructions for bfloat16, an empty cache folder, and the list of measurements that were made."""
    made = []

    def measure():
        made.append(Measured(float32=0.01 * (len(made) + 1), bfloat16=0.02))
        return made[-1]

    monkeypatch.setattr(precision, "CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "has_onednn", lambda dtype: True)
    monkeypatch.setattr(precision, "_measure", measure)
    measured_here.cache_clear()
    yield made
    measured_here.cache_clear()


@pytest.mark.parametrize(("float32", "bfloat16", "faster"), [(1.0, 2.0, "float32"), (2.0, 1.0, "bfloat16")])
def test_auto_is_the_faster_precision(monkeypatch, float32, bfloat16, faster):
    monkeypatch.setattr(registry, "measured_here", lambda: Measured(float32, bfloat16))
    assert registry.resolve_precision("auto") == faster
    assert {registry.resolve_precision(name) for name in ("float32", "bfloat16")} == {"float32", "bfloat16"}


def test_a_processor_without_instructions_for_bfloat16_measures_nothing(measurements, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "has_onednn", lambda dtype: False)
    assert measured_here() is None
    assert registry.resolve_precision("auto") == "float32"
    assert not measurements
    assert not list(tmp_path.iterdir())


def test_a_gpu_computes_in_bfloat16(measurements, monkeypatch):
    monkeypatch.setattr(registry.jax, "default_backend", lambda: "gpu")
    assert registry.resolve_precision("auto") == "bfloat16"
    assert not measurements


def test_a_machine_measures_once(measurements):
    first = measured_here()
    measured_here.cache_clear()  # As another process.
    assert measured_here() == first == measurements[0]
    assert len(measurements) == 1


def test_another_processor_measures_again(measurements, monkeypatch):
    measured_here()
    measured_here.cache_clear()
    monkeypatch.setattr(precision.jax, "__version__", "0.0.1")
    assert measured_here() == measurements[1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"float32": "fast", "bfloat16": 1}'])
def test_a_damaged_file_is_replaced(measurements, tmp_path, text):
    measured_here()
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    measured_here.cache_clear()
    assert measured_here() == measurements[1]
    assert json.loads(file.read_text()) == measurements[1]._asdict()


def test_a_folder_that_cannot_be_written_only_costs_time(measurements, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(precision, "CACHE", str(tmp_path / "file" / "folder"))
    assert measured_here() == measurements[0]


def test_the_step_is_measured_in_both_precisions(monkeypatch):
    monkeypatch.setattr(precision, "ROUNDS", 1)
    measured = precision._measure()
    assert 0 < measured.float32 < float("inf")
    assert 0 < measured.bfloat16 < float("inf")
    assert measured.faster in str(measured)


def test_a_run_prints_what_was_measured_only_if_that_decides(monkeypatch):
    lines = []
    monkeypatch.setattr(TrainProgress, "print", lambda self, line: lines.append(line))
    monkeypatch.setattr(loop, "measured_here", lambda: Measured(float32=0.012, bfloat16=0.034))
    progress = object.__new__(TrainProgress)
    loop._print_precision(ModelConfig(precision="bfloat16"), progress)
    assert not lines
    loop._print_precision(ModelConfig(precision="auto"), progress)
    assert lines == ["precision float32: two convolutions take 12.0 ms in float32 and 34.0 ms in bfloat16 here"]
    monkeypatch.setattr(loop, "measured_here", lambda: None)
    loop._print_precision(ModelConfig(precision="auto"), progress)
    assert len(lines) == 1
