"""The records of a run, and what may not change between two starts."""

import dataclasses
import json

import pytest

from jaxcnn.config import digits
from jaxcnn.errors import UserError
from jaxcnn.workdir import Classes, Workdir, environment, write_atomically

CLASSES = Classes(("cat", "dog", "eel"), ("n1", "n2", "n3"), "pets", "MIT")


def test_what_begins_can_be_read(tmp_path):
    run = Workdir(tmp_path / "new" / "run")
    run.begin(digits(), CLASSES)
    assert run.read_config() == digits()
    assert run.read_classes() == CLASSES
    recorded = json.loads((run.path / "environment.json").read_text())
    assert recorded["jax"] == environment()["jax"]
    assert int(recorded["cores"]) >= 1


def test_other_rates_may_follow_but_no_other_model(tmp_path):
    run = Workdir(tmp_path)
    run.begin(digits(), CLASSES)
    longer = dataclasses.replace(digits(), epochs=99)
    run.begin(longer, CLASSES)
    assert run.read_config() == longer
    wider = dataclasses.replace(digits(), model=dataclasses.replace(digits().model, widths=(1, 2, 3)))
    with pytest.raises(UserError, match=r"model.widths \(32, 64, 128\), not \(1, 2, 3\)"):
        run.begin(wider, CLASSES)
    assert run.read_config() == longer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("cat", "dog", "elk")}, r"names\[2\] was 'eel', the data has 'elk'"),
        ({"names": ("cat", "dog")}, r"names\[2\] was 'eel', the data has nothing"),
        ({"wnids": ()}, r"wnids\[0\] was 'n1', the data has nothing"),
    ],
)
def test_other_classes_are_refused(tmp_path, change, message):
    run = Workdir(tmp_path)
    run.begin(digits(), CLASSES)
    with pytest.raises(UserError, match=message):
        run.begin(digits(), dataclasses.replace(CLASSES, **change))


def test_what_is_no_workdir_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Workdir(tmp_path / "absent").read_config()
    with pytest.raises(UserError, match=r"it has no config.json"):
        Workdir(tmp_path).read_config()
    (tmp_path / "classes.json").write_text("{}")
    with pytest.raises(UserError, match=r"classes.json is damaged"):
        Workdir(tmp_path).read_classes()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Workdir(tmp_path / "file" / "run").begin(digits(), CLASSES)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
