"""The dry run: what it prints, and that it leaves nothing behind."""

import dataclasses

import pytest

from jaxcnn import rehearsal
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.rehearsal import first_epochs, rehearse


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "MEASURED_SECONDS", 0.0)
    return Config(
        data=DataConfig(image_size=8, cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(widths=(4,), blocks=(0,)),
        epochs=3,
        batch_size=16,
    )


def test_it_says_what_a_run_takes_and_leaves_nothing(config, tmp_path, capsys):
    network, steps, total = rehearse(config, tmp_path / "run")
    assert "parameters" in network
    assert "303 steps at 8x8 pixels" in steps
    assert "for all steps" in total
    assert "1,618 training and 179 validation pictures" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_what_a_run_refuses_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"nothing does not exist|nothing"):
        list(rehearse(dataclasses.replace(config, data=DataConfig(source="nothing")), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_each_resolution_is_measured_once(config):
    progressive = dataclasses.replace(config, epochs=10, resolutions=((0.0, 8), (0.5, 16), (0.9, 8)))
    assert first_epochs(progressive) == {0: 6, 5: 4}
