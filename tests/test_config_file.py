"""Settings from a file."""

import dataclasses
import json

import pytest
from recorded_runs import CONFIG, write_run

from jaxcnn.config_file import read_settings
from jaxcnn.errors import UserError
from jaxcnn.presets import digits
from jaxcnn.train import parse

TOML = """\
epochs = 7
resolutions = [[0, 16], [0.5, 32]]
[optim]
name = "adam"
learning_rate = 1e-3
"""


@pytest.fixture
def toml(tmp_path):
    (tmp_path / "fast.toml").write_text(TOML)
    return tmp_path / "fast.toml"


def test_a_file_changes_what_it_names(toml):
    found = read_settings(toml, digits())
    assert (found.epochs, found.resolutions) == (7, ((0.0, 16), (0.5, 32)))
    optim = dataclasses.replace(digits().optim, name="adam", learning_rate=1e-3)
    assert found == dataclasses.replace(digits(), epochs=7, resolutions=((0.0, 16), (0.5, 32)), optim=optim)


def test_json_is_read_like_toml(toml, tmp_path):
    path = tmp_path / "fast.json"
    path.write_text(json.dumps({"epochs": 7, "resolutions": [[0, 16], [0.5, 32]],
                                "optim": {"name": "adam", "learning_rate": 1e-3}}))  # fmt: skip
    assert read_settings(path, digits()) == read_settings(toml, digits())


def test_a_byte_order_mark_is_no_part_of_a_file(toml):
    found = read_settings(toml, digits())
    toml.write_text(TOML, encoding="utf-8-sig")
    assert read_settings(toml, digits()) == found


def test_options_override_the_file_which_overrides_the_preset(toml):
    parsed = parse(["--config", str(toml), "--epochs", "3"])
    assert (parsed.config.epochs, parsed.config.optim.name, parsed.config.optim.warmup) == (3, "adam", 0.2)
    assert parsed.workdir.as_posix() == "runs/fast"
    assert parse([f"--config={toml}", "--workdir", "x"]).workdir.name == "x"


def test_the_record_of_a_run_is_taken_as_a_whole(tmp_path):
    write_run(tmp_path / "run", seed=5)
    parsed = parse(["folder", "--config", str(tmp_path / "run" / "config.json"), "--epochs", "9"])
    assert parsed.config.epochs == 9
    assert parsed.config.seed == 5
    assert parsed.config.augment == CONFIG.augment
    assert parsed.workdir.as_posix() == "runs/run"


@pytest.mark.parametrize(
    ("path", "workdir"),
    [
        ("config.toml", "runs/config"),
        ("inner/config.toml", "runs/config"),
        ("../config.toml", "runs/config"),
        ("config.json", "runs/here"),
        ("../config.json", "runs/outer"),
        ("inner/config.json", "runs/inner"),
    ],
)
def test_a_run_has_a_folder_of_its_own_however_its_file_is_called(tmp_path, monkeypatch, path, workdir):
    folder = tmp_path / "outer" / "here"
    (folder / "inner").mkdir(parents=True)
    monkeypatch.chdir(folder)
    (folder / path).write_text("{}" if path.endswith("json") else "")
    assert parse(["--config", path]).workdir.as_posix() == workdir


def test_another_network_comes_in_its_default_shape(tmp_path):
    (tmp_path / "a.toml").write_text('model.name = "seed"')
    assert read_settings(tmp_path / "a.toml", digits()).model.widths != digits().model.widths


def test_no_initial_weights_leave_nothing_to_freeze(tmp_path):
    (tmp_path / "a.json").write_text('{"init_from": null}')
    found = parse(["finetune", "--config", str(tmp_path / "a.json")]).config
    assert (found.init_from, found.freeze, found.fit_head) == (None, "none", False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", 'epochs = "five"', r"a\.toml: epochs is 'five'; it must be a whole number$"),
        ("a.toml", "init_from = 5", r"a\.toml: init_from is 5; it must be a text$"),
        ("a.toml", "epochs = 0", r"a\.toml: epochs is 0; it must be at least 1$"),
        ("a.toml", "[optim]\nlr = 1", r"a\.toml: there is no optim\.lr; optim has: name, learning_rate"),
        ("a.toml", "epochs 3", r"config .*a\.toml is not TOML: Expected '='"),
        ("a.json", "{", r"config .*a\.json is not JSON: "),
        ("a.json", "[]", r"a\.json holds no settings; write them by name, such as \{\"epochs\": 10\}"),
        ("a.yaml", "", r"config is '.*a\.yaml'; give a file that ends with \.toml or \.json"),
        ("b.toml", None, r"config .*b\.toml cannot be read: No such file or directory; check the path"),
    ],
)
def test_a_wrong_file_is_one_line_of_error(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse(["--config", str(tmp_path / name)])
    assert "\n" not in str(caught.value)
