"""The dry run: what it prints, and that it leaves nothing behind."""

import dataclasses

import pytest

from jaxcnn import memory, rehearsal
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.rehearsal import Finding, first_epochs, rehearse
from jaxcnn.run import progress
from jaxcnn.terminal import console
from jaxcnn.train import main


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "MEASURED_SECONDS", 0.0)
    return Config(
        data=DataConfig(image_size=8, cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(widths=(4,), blocks=(0,)),
        epochs=3,
        batch_size=16,
    )


def test_it_says_what_a_run_takes_and_leaves_nothing(config, tmp_path, capsys):
    network, steps, total = rehearse(config, tmp_path / "run")
    assert "parameters" in network.text
    assert network.text.endswith(
        " MB for each checkpoint, at most four at once: the last two, the best and the one that is being written"
    )
    assert "303 steps at 8x8 pixels" in steps.text
    assert (steps.record["steps"], total.record["steps"]) == (303, 303)
    assert 0 < steps.record["step_bytes"] < 1e8
    assert total.record["seconds"] == pytest.approx(303 * steps.record["step_seconds"])
    assert "for all steps" in total.text
    assert "1,618 training and 179 validation pictures" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_what_a_run_refuses_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"^data\.source 'nothing' does not exist; give"):
        list(rehearse(dataclasses.replace(config, data=DataConfig(source="nothing")), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_each_resolution_is_measured_once(config):
    progressive = dataclasses.replace(config, epochs=10, resolutions=((0.0, 8), (0.5, 16), (0.9, 8)))
    assert first_epochs(progressive) == {0: 6, 5: 4}


def test_a_step_that_needs_more_memory_than_there_is_is_not_taken(config, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    message = r"^a step of 16 pictures of 8x8 pixels needs 0\.\d GB of memory, but 0\.0 GB are free; lower --batch_size"
    with pytest.raises(UserError, match=message):
        list(rehearse(config, tmp_path / "run"))


@pytest.mark.parametrize(("options", "printed"), [([], "two steps\n"), (["--json"], '{"kind": "total", "steps": 2}\n')])
def test_findings_are_printed_as_text_or_json_in_quiet_mode_too(tmp_path, monkeypatch, capsys, options, printed):
    found = Finding("two steps", {"kind": "total", "steps": 2})
    monkeypatch.setattr(rehearsal, "rehearse", lambda config, workdir: [found])
    monkeypatch.setattr(console, "quiet", False)  # Put back at the end.
    main(["--dry_run", "--quiet", "--workdir", str(tmp_path / "run"), *options])
    assert capsys.readouterr() == (printed, "")
