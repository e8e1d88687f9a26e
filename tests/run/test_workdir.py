"""The records of a run, and what may not change when it is resumed."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from jaxcnn.checksum import seal, unseal
from jaxcnn.config import DataConfig
from jaxcnn.data import Fingerprint
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.ops.precision import Measured
from jaxcnn.presets import digits
from jaxcnn.run.environment import environment
from jaxcnn.run.workdir import Classes, Workdir

CLASSES = Classes(("cat", "dog", "eel"), ("n1", "n2", "n3"), "pets", "MIT")
PICTURES = Fingerprint(train=1618, validation=179, labels="ab", pixels="cd", side=32)


def test_records_are_read_as_written(tmp_path):
    workdir = Workdir(tmp_path / "new" / "run")
    with workdir.locked():
        workdir.record(digits(), CLASSES)
    assert workdir.read_config() == digits()
    assert workdir.read_classes() == CLASSES
    recorded = json.loads((workdir.path / "environment.json").read_text())
    assert recorded["jax"] == environment()["jax"]
    assert int(recorded["cores"]) >= 1


def test_the_password_of_an_address_is_not_recorded(tmp_path, monkeypatch):
    address = "http://me:s3cret@127.0.0.1:5000/a@b"
    monkeypatch.setattr(sys, "argv", ["train.py", "--log.mlflow", address, f"--log.mlflow={address}"])
    Workdir(tmp_path).record(digits(), CLASSES)
    kept = "http://***@127.0.0.1:5000/a@b"
    assert Workdir(tmp_path).read_environment()["command"] == f"train.py --log.mlflow {kept} --log.mlflow={kept}"


def begin_in(workdir, *names):
    """Creates empty files in a workdir, and is then refused."""
    with workdir.locked():
        for name in names:
            (workdir.path / name).parent.mkdir(exist_ok=True)
            (workdir.path / name).touch()
        raise UserError("refused")


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    workdir = Workdir(tmp_path / "a" / "b" / "run")
    with pytest.raises(UserError, match="refused"):
        begin_in(workdir, "metrics.jsonl", "events.out.tfevents.1", "checkpoints/0")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_keeps_what_was_there_and_what_others_write(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(UserError, match="refused"):
        begin_in(Workdir(tmp_path), "photo.jpg", "checkpoints/0")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "photo.jpg"}


def test_a_run_that_was_begun_is_kept(tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.record(digits(), CLASSES)
    with pytest.raises(UserError, match="refused"):
        begin_in(workdir, "metrics.jsonl")
    assert {"classes.json", "metrics.jsonl"} <= {path.name for path in workdir.path.iterdir()}


@pytest.mark.parametrize(("fast", "used"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_that_auto_chose_is_recorded(tmp_path, monkeypatch, fast, used):
    monkeypatch.setattr(registry, "measured_here", lambda: Measured(float32=0.02, bfloat16=0.01 if fast else 0.03))
    monkeypatch.setattr(registry.jax, "default_backend", lambda: "cpu")
    model = dataclasses.replace(digits().model, precision="auto")
    Workdir(tmp_path).record(dataclasses.replace(digits(), model=model), CLASSES)
    assert json.loads((tmp_path / "environment.json").read_text())["precision"] == used
    assert Workdir(tmp_path).read_config().model.precision == "auto"  # Another machine may choose another.


def test_names_that_earlier_versions_recorded_as_bytes_are_read_as_text(tmp_path):
    bytes_in_them = dataclasses.replace(CLASSES, names=("caf\udce9", "dog", "eel"), dataset="p\udce9ts")
    Workdir(tmp_path).record(digits(), bytes_in_them)
    read = Workdir(tmp_path).read_classes()
    assert (read.names, read.dataset) == (("caf\ufffd", "dog", "eel"), "p\ufffdts")


def test_a_run_can_be_resumed_with_other_rates_but_no_other_model(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.check_resumable(digits())
    workdir.record(digits(), CLASSES)
    precise = dataclasses.replace(digits().model, precision="bfloat16")
    workdir.check_resumable(dataclasses.replace(digits(), epochs=99, model=precise))
    wider = dataclasses.replace(digits(), model=dataclasses.replace(digits().model, widths=(1, 2, 3)))
    with pytest.raises(UserError, match=r"model.widths \(32, 64, 128\), not \(1, 2, 3\)"):
        workdir.check_resumable(wider)
    with pytest.raises(UserError, match="batch_size 64, not 32"):
        workdir.check_resumable(dataclasses.replace(digits(), batch_size=32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed 0, not 7"),
        ({"data": dataclasses.replace(digits().data, split_seed=7)}, r"data\.split_seed 0, not 7"),
        ({"data": dataclasses.replace(digits().data, image_size=64)}, r"data\.image_size 32, not 64"),
        ({"data": dataclasses.replace(digits().data, validation_fraction=None)}, r"validation_fraction 0\.2, not None"),
    ],
)
def test_a_run_keeps_its_seed_and_its_split(tmp_path, change, message):
    workdir = Workdir(tmp_path)
    workdir.record(digits(), CLASSES)
    with pytest.raises(UserError, match=message):
        workdir.check_resumable(dataclasses.replace(digits(), **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("cat", "dog", "elk")}, r"names\[2\] was 'eel', the data has 'elk'"),
        ({"names": ("cat", "dog")}, r"names\[2\] was 'eel', the data has nothing"),
        ({"wnids": ()}, r"wnids\[0\] was 'n1', the data has nothing"),
    ],
)
def test_other_classes_are_refused(tmp_path, change, message):
    workdir = Workdir(tmp_path)
    workdir.record(digits(), CLASSES)
    with pytest.raises(UserError, match=message):
        workdir.check_same_data(dataclasses.replace(CLASSES, **change), PICTURES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 1619, "labels": "ac"}, "were 1,618 for training and 179 for validation, now there are 1,619 for"),
        ({"labels": "ac", "pixels": "ce"}, "as many, but others or in another order"),
        ({"pixels": "ce"}, "Put the pictures back as they were, or give another --workdir"),
    ],
)
def test_a_data_set_with_another_split_is_refused(tmp_path, change, message):
    workdir = Workdir(tmp_path)
    workdir.record(digits(), CLASSES)
    workdir.check_same_data(CLASSES, PICTURES)  # A run of an earlier version has no record.
    workdir.record_pictures(PICTURES)
    workdir.check_same_data(CLASSES, PICTURES)
    workdir.check_same_data(
        CLASSES, dataclasses.replace(PICTURES, side=64, pixels="ef")
    )  # The same pictures in another size.
    with pytest.raises(UserError, match=message):
        workdir.check_same_data(CLASSES, dataclasses.replace(PICTURES, **change))


def test_a_record_without_a_decoder_is_read(tmp_path):
    old = {name: value for name, value in dataclasses.asdict(PICTURES).items() if name != "decoder"}
    (tmp_path / "pictures.json").write_text(json.dumps(old))
    assert Workdir(tmp_path).read_pictures() == dataclasses.replace(PICTURES, decoder=0)


@pytest.mark.parametrize("text", ["", "[]", "1", '{"python": 3}'])
def test_a_damaged_record_of_the_environment_is_read_as_empty(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    assert Workdir(tmp_path).read_environment() == {}


def test_the_paths_of_a_run_are_valid_in_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir, config = Workdir(tmp_path / "run"), digits()
    for source, archive in (("pets", None), ("tiny_imagenet", "tiny.zip")):
        of = DataConfig(source=source, archive=archive, cache_dir="cache")
        workdir.record(dataclasses.replace(config, data=of), CLASSES)
        monkeypatch.chdir("/")
        found = workdir.read_data_config()
        monkeypatch.chdir(tmp_path)
        assert found.source == (source if archive else str(tmp_path / source))
        assert found.archive == (archive and str(tmp_path / archive))
        assert found.cache_dir == str(tmp_path / "cache")


@pytest.mark.parametrize("text", ["", "[]", '{"train": 1}', json.dumps(dataclasses.asdict(PICTURES) | {"train": "1"})])
def test_a_damaged_record_of_the_pictures_is_reported(tmp_path, text):
    (tmp_path / "pictures.json").write_text(text)
    with pytest.raises(UserError, match=r"pictures\.json is damaged"):
        Workdir(tmp_path).read_pictures()


@pytest.mark.parametrize(
    ("name", "old", "new"), [("config", "32", "36"), ("classes", "cat", "cau"), ("pictures", '"ab"', '"ac"')]
)
def test_a_changed_record_is_reported(tmp_path, name, old, new):
    workdir = Workdir(tmp_path)
    workdir.record(digits(), CLASSES)
    workdir.record_pictures(PICTURES)
    path = tmp_path / f"{name}.json"
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"{name}\.json is damaged \(its values differ from its checksum, which"):
        getattr(workdir, f"read_{name}")()
    # By hand, without the checksum, it may be changed; so may a record of an earlier version.
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(record))
    getattr(workdir, f"read_{name}")()


@pytest.mark.parametrize(
    "name", ["config.json", "classes.json", "pictures.json", "earlier_trainings.json", "teachers.json"]
)
def test_a_damaged_record_is_reported_before_the_pictures_are_read(tmp_path, name):
    Workdir(tmp_path).record(digits(), CLASSES)
    (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        Workdir(tmp_path).check_resumable(digits())


def test_a_folder_that_is_not_a_workdir_is_reported(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Workdir(tmp_path / "absent").read_config()
    with pytest.raises(UserError, match=r"it has no config.json"):
        Workdir(tmp_path).read_config()
    (tmp_path / "config.json").write_text('{"mode": 3}')
    with pytest.raises(UserError, match=r"config.json is damaged \(there is no config\.mode; config has: data"):
        Workdir(tmp_path).read_config()
    (tmp_path / "classes.json").write_text("{}")
    with pytest.raises(UserError, match=r"classes.json is damaged"):
        Workdir(tmp_path).read_classes()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Workdir(tmp_path / "file" / "run").locked():
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a[b]c", r"has a \[ in it"),
        ("a*", r"has a \* in it"),
        ("a?", r"has a \? in it"),
        ("a\\b", r"has a \\ in it"),
        (os.fsdecode(b"caf\xe9"), "has bytes in it that are not UTF-8"),
    ],
)
def test_a_path_under_which_checkpoints_could_not_be_read_is_refused(tmp_path, monkeypatch, name, message):
    with pytest.raises(UserError, match=message) as caught, Workdir(tmp_path / name / "run").locked():
        pass
    assert "rename that folder or give another --workdir" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match=message), Workdir(Path("run")).locked():
        pass


def test_other_characters_in_a_path_are_accepted(tmp_path):
    with Workdir(tmp_path / "é a]'{b}#%41:").locked():
        pass


def test_a_finished_run_accepts_only_changes_without_effect(tmp_path):
    workdir, config = Workdir(tmp_path), digits()
    workdir.record(config, CLASSES)
    moved = dataclasses.replace(config.data, source="elsewhere", cache_dir="there")
    same = dataclasses.replace(config, data=moved, checkpoint_minutes=1.0, early_stopping=3)
    workdir.check_unchanged(same, advice="more --epochs")
    for change, message in (
        ({"optim": dataclasses.replace(config.optim, learning_rate=5.0)}, r"with optim\.learning_rate 0\.1, not 5\.0"),
        ({"data": dataclasses.replace(config.data, image_size=64)}, r"with data\.image_size 32, not 64"),
        ({"label_smoothing": 0.5}, r"with label_smoothing 0\.0, not 0\.5; give the same settings, more --epochs or"),
    ):
        with pytest.raises(UserError, match=message):
            workdir.check_unchanged(dataclasses.replace(config, **change), advice="more --epochs")


@pytest.mark.parametrize(
    ("devices", "given", "resolved"),
    [(8, 100, 96), (8, 97, 96), (8, 96, 96), (8, 64, 64), (1, 100, 100), (1, 101, 96)],
)
def test_a_batch_that_was_reduced_is_recognised_on_as_many_devices(tmp_path, devices, given, resolved):
    workdir, config = Workdir(tmp_path), dataclasses.replace(digits(), batch_size=96)
    workdir.record(config, CLASSES)
    workdir.record_pictures(dataclasses.replace(PICTURES, train=100))
    recorded = json.loads((tmp_path / "environment.json").read_text())
    names = ", ".join(["NVIDIA H200"] * devices)
    (tmp_path / "environment.json").write_text(json.dumps(seal(unseal(recorded) | {"devices": names})))
    assert workdir.resolve(dataclasses.replace(config, batch_size=given)).batch_size == resolved


def test_only_one_process_trains_in_a_folder(tmp_path):
    lines = ("import sys", "from pathlib import Path", "from jaxcnn.run.workdir import Workdir")
    program = "\n".join([*lines, "Workdir(Path(sys.argv[1])).locked().__enter__()"])
    command = [sys.executable, "-c", program, str(tmp_path)]
    with Workdir(tmp_path).locked():
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "another process is training in" in done.stderr
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)


def test_a_folder_that_another_process_leaves_soon_is_waited_for(tmp_path):
    fcntl, other = pytest.importorskip("fcntl"), (tmp_path / ".lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is training in"):
        Workdir(tmp_path).locked(seconds=0.1).__enter__()
    threading.Timer(0.2, other.close).start()
    with Workdir(tmp_path).locked(seconds=60.0):
        assert other.closed


def test_a_run_that_begins_when_another_is_refused_keeps_its_lock_and_its_files(tmp_path, monkeypatch):
    release, next_run = FileLock.release, FileLock(tmp_path / ".lock", timeout=0)

    def release_and_begin(lock, **options):
        release(lock, **options)
        if not next_run.is_locked:
            next_run.acquire()
            (tmp_path / "checkpoints").mkdir()

    with Workdir(tmp_path).locked():
        (tmp_path / "checkpoints").mkdir()
        monkeypatch.setattr(FileLock, "release", release_and_begin)
    monkeypatch.undo()
    assert (tmp_path / "checkpoints").exists()
    with pytest.raises(UserError, match="another process is training in"):
        Workdir(tmp_path).locked().__enter__()
    next_run.release()


def refuse_locks(monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", fail)


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")
@pytest.mark.skipif(not hasattr(FileLock, "fallback_to_soft"), reason="earlier versions of filelock refuse such drives")
def test_on_a_drive_without_locks_a_killed_process_can_be_given_up(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.ENOSYS)
    with Workdir(tmp_path).locked(), pytest.raises(UserError, match="another process is training in"):
        Workdir(tmp_path).locked().__enter__()
    with Workdir(tmp_path).locked():
        pass
    (tmp_path / ".lock").write_text("7\nanother-machine\n")
    with pytest.raises(UserError, match=r"wait for it, or remove .*/\.lock if it was killed, or give another"):
        Workdir(tmp_path).locked().__enter__()
    (tmp_path / ".lock").unlink()
    with Workdir(tmp_path).locked():
        pass


def test_a_drive_that_locks_nothing_is_named(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.ENOLCK)
    with pytest.raises(
        UserError, match=r"cannot be written or locked: No locks available; give a --workdir on another disk"
    ):
        Workdir(tmp_path).locked().__enter__()


def test_a_file_is_not_a_workdir(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"model\.onnx is a file; give the workdir of a training run, which is a"):
        Workdir(tmp_path / "model.onnx").read_config()


def test_a_note_is_kept_until_there_is_another(tmp_path):
    workdir = Workdir(tmp_path)
    assert workdir.read_note() == ""
    workdir.write_note("not UTF-8: \udce9")
    assert workdir.read_note() == "not UTF-8: \ufffd"
    workdir.write_note("the first\nidea")
    assert workdir.read_note() == "the first\nidea"
    workdir.write_note("é")
    assert workdir.read_note() == "é"
