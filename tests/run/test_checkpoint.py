"""Checkpoints: what is kept, what is refused, and that a save cut short is never taken for a checkpoint."""

import dataclasses
import errno
import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from log_lines import validation_record
from orbax.checkpoint import v1 as ocp

from jaxcnn import disk
from jaxcnn.calibration import Calibration, write_calibration
from jaxcnn.checksum import checksum_file
from jaxcnn.config import Config, DataConfig, ModelConfig, OptimConfig
from jaxcnn.distributed import place_state
from jaxcnn.errors import UserError
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.run import checkpoint, checkpoint_reading
from jaxcnn.run.checkpoint import load_model, open_checkpoints
from jaxcnn.run.checkpoint_reading import Saved
from jaxcnn.run.metrics_log import RunLog
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import create_state

Checkpointer = ocp.training.Checkpointer
CONFIG = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(1,)))
CLASSES = Classes(("cat", "dog", "eel"), (), "pets", "MIT")


@functools.cache
def make_state(config=CONFIG, *, classes=3, seed=0):
    return create_state(
        jax.random.key(seed),
        model=registry.build(config.model, classes=classes),
        optimizer=make_optimizer(config.optim, steps=100),
        image_size=config.data.image_size,
        averaged=config.optim.ema_decay > 0,
    )


def at(state, step):
    return state._replace(step=jnp.int32(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_every_optimizers_state_comes_back(tmp_path, name):
    config = dataclasses.replace(CONFIG, optim=OptimConfig(name=name, learning_rate=0.1, clip_norm=1.0, ema_decay=0.9))
    state = at(make_state(config), 7)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step is None
        checkpoints.save(state)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step == 7
        assert_same(checkpoints.restore(make_state(config, seed=1)), state)


def test_a_resumed_run_compiles_the_program_of_the_first_start(tmp_path):
    state = place_state(at(make_state(), 7), None)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(place_state(jax.tree.map(np.zeros_like, state), None))
    new, resumed = (jax.jit(lambda state: state).lower(start).as_text() for start in (state, restored))
    # Also in where the arrays are, so that the program is found among those that were kept.
    assert resumed == new


def test_the_last_two_and_the_best_are_kept(tmp_path):
    state = make_state()
    with open_checkpoints(tmp_path) as checkpoints:
        for step, top1 in ((1, 0.5), (2, None), (3, 0.7), (4, 0.7), (5, 0.6), (6, None)):
            checkpoints.save(at(state, step), metrics=None if top1 is None else {"top1": top1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5", "6"]


def test_metrics_that_come_later_count_as_if_they_had_been_saved(tmp_path):
    run, state = Workdir(tmp_path), make_state()
    run.record(CONFIG, CLASSES)
    with open_checkpoints(run.checkpoints) as checkpoints:
        assert not checkpoints.lacks_metrics(0)
        for step, top1 in ((1, 0.5), (2, 0.4), (3, None)):
            checkpoints.save(at(state, step), metrics=None if top1 is None else {"top1": top1})
    assert load_model(tmp_path).step == 1
    for power_fails in (True, False):
        with open_checkpoints(run.checkpoints) as checkpoints, pytest.MonkeyPatch.context() as patch:
            assert [checkpoints.lacks_metrics(step) for step in (2, 3)] == [False, True]
            if power_fails:
                patch.setattr(checkpoint, "write_atomically", lambda path, content: None)
            checkpoints.add_metrics(3, {"top1": 0.7})
    with open_checkpoints(run.checkpoints) as checkpoints:
        assert not checkpoints.lacks_metrics(3)
        checkpoints.save(at(state, 4), metrics={"top1": 0.1})
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["3", "4"]
    model = load_model(tmp_path)
    assert (model.step, model.metrics) == (3, {"top1": 0.7})
    # They are under a checksum, too.
    (run.checkpoints / "3" / checkpoint_reading.METRICS).write_text('{"top1": 0.8}')
    assert load_model(tmp_path).step == 4
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["3.damaged", "4"]


def test_the_best_checkpoint_is_loaded(tmp_path):
    run = Workdir(tmp_path)
    run.record(CONFIG, CLASSES)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_model(tmp_path)
    best, last = at(make_state(seed=1), 3), at(make_state(seed=2), 5)
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(best, metrics={"top1": 0.9})
        checkpoints.save(last, metrics={"top1": 0.1})
    model = load_model(tmp_path)
    assert (model.step, model.metrics, model.names) == (3, {"top1": 0.9}, CLASSES.names)
    assert_same(model.variables, best.variables)


def test_the_average_is_loaded_if_there_is_one(tmp_path):
    config = dataclasses.replace(CONFIG, optim=OptimConfig(ema_decay=0.9))
    run = Workdir(tmp_path)
    run.record(config, CLASSES)
    state = make_state(config)
    state = at(state._replace(average=jax.tree.map(lambda leaf: leaf + 1, state.average)), 1)
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(state)
    assert_same(load_model(tmp_path).variables, state.average)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with one checkpoint, of step 1."""
    run = Workdir(tmp_path_factory.mktemp("saved"))
    run.record(CONFIG, CLASSES)
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=1), 1), metrics={"top1": 0.5})
    return run


@pytest.fixture(scope="module")
def saved_twice(saved, tmp_path_factory):
    """A run with two checkpoints: of step 1, the best, and of step 4."""
    run = copy_run(saved, tmp_path_factory.mktemp("saved_twice"))
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=4), 4), metrics={"top1": 0.1})
    return run


def copy_run(run, folder):
    return Workdir(shutil.copytree(run.path, folder, dirs_exist_ok=True))


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the run with one checkpoint."""
    return copy_run(saved, tmp_path)


@pytest.fixture
def two(saved_twice, tmp_path):
    """A copy of the run with two checkpoints."""
    return copy_run(saved_twice, tmp_path)


def resume(directory):
    with open_checkpoints(directory) as checkpoints:
        return checkpoints.restore(make_state())


def before_first(monkeypatch, method, act):
    """Lets something happen just before the first call of a method of Orbax's checkpointer."""
    original = getattr(Checkpointer, method)

    def called(*args, **kwargs):
        monkeypatch.setattr(Checkpointer, method, original)
        act()
        return original(*args, **kwargs)

    monkeypatch.setattr(Checkpointer, method, called)


@pytest.mark.parametrize("shown", [True, False])
def test_every_process_restores_the_checkpoint_that_the_first_one_lists(two, monkeypatch, shown):
    """This process is not the first, and a network drive does not show the last checkpoint to it at once."""
    listed, reload, hidden = Checkpointer.checkpoints.fget, Checkpointer.reload, {4}

    def reload_and_show(checkpointer):
        reload(checkpointer)
        hidden.difference_update({4} if shown else {})

    def follow(function):
        return 4 if (found := function()) == 1 else found

    monkeypatch.setattr(disk, "SHOWN_SECONDS", 0.2)
    monkeypatch.setattr(checkpoint, "lead", follow)
    monkeypatch.setattr(
        Checkpointer,
        "checkpoints",
        property(lambda self: [saved for saved in listed(self) if saved.step not in hidden]),
    )
    monkeypatch.setattr(Checkpointer, "reload", reload_and_show)
    if shown:
        assert_same(resume(two.checkpoints).variables, make_state(seed=4).variables)
    else:
        with pytest.raises(UserError, match=r"^process 0 does not see checkpoint 4 of .*; give a --workdir on a disk"):
            resume(two.checkpoints)


@pytest.mark.parametrize("moment", ["__init__", "checkpointables_metadata", "load_checkpointables"])
def test_a_checkpoint_replaced_while_it_is_read_is_selected_again(run, monkeypatch, moment):
    better = at(make_state(seed=3), 3)

    def save_better():
        with open_checkpoints(run.checkpoints) as checkpoints:
            checkpoints.save(at(make_state(seed=2), 2))
            checkpoints.save(better, metrics={"top1": 0.6})
        assert folders(run) == ["2", "3"]
        if moment == "__init__":
            raise FileNotFoundError("1")  # Orbax had listed it.

    before_first(monkeypatch, moment, save_better)
    model = load_model(run.path)
    assert (model.step, model.metrics) == (3, {"top1": 0.6})
    assert_same(model.variables, better.variables)


def test_a_checkpoint_that_is_deleted_while_its_metrics_are_checked_is_not_called_damaged(two, monkeypatch):
    def delete_first(path):
        if path.match("checkpoints/1/metrics/metrics"):
            shutil.rmtree(two.checkpoints / "1")
        return checksum_file(path)

    monkeypatch.setattr("jaxcnn.run.seal.checksum_file", delete_first)
    assert load_model(two.path).step == 4
    assert folders(two) == ["4"]


def folders(run):
    return sorted(path.name for path in run.checkpoints.iterdir())


@pytest.mark.parametrize("method", ["checkpointables_metadata", "load_checkpointables"])
def test_the_only_checkpoint_stays_if_it_is_damaged(run, monkeypatch, method):
    def fail(*_):
        raise KeyError("damage")

    monkeypatch.setattr(Checkpointer, method, fail)
    for read in (load_model, lambda path: resume(path / "checkpoints")):
        with pytest.raises(UserError) as caught:
            read(run.path)
        assert str(caught.value) == (
            f"checkpoint 1 of {run.checkpoints} is damaged (KeyError); remove its folder to start anew, for there is "
            "no other, or train in another --workdir"
        )
    assert folders(run) == ["1"]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def largest_file(folder):
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("read", "damaged", "used"), [(load_model, 1, 4), (lambda path: resume(path / "checkpoints"), 4, 1)]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_other_is_used(two, capsys, read, damaged, used):
    flip(largest_file(two.checkpoints / str(damaged)), 12345)
    found = read(two.path)
    assert int(found.step) == used
    assert_same(found.variables, make_state(seed=used).variables)
    assert folders(two) == sorted([str(used), f"{damaged}.damaged"])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"checkpoint {damaged} of {two.checkpoints} is damaged \((model|training)/\S+ differs from its checksum\): "
        rf"it was renamed to {damaged}\.damaged, and checkpoint {used} is used",
        line,
    )
    # Training goes on.
    with open_checkpoints(two.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=5), 5))


def test_the_one_before_a_damaged_checkpoint_is_used_though_it_is_not_the_best(two, capsys):
    with open_checkpoints(two.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=6), 6))
    flip(largest_file(two.checkpoints / "6"), 12345)
    assert int(resume(two.checkpoints).step) == 4
    assert folders(two) == ["1", "4", "6.damaged"]
    assert capsys.readouterr().err.endswith("renamed to 6.damaged, and checkpoint 4 is used\n")


def test_no_folder_that_was_set_aside_is_replaced(two):
    (two.checkpoints / "1.damaged").mkdir()
    flip(two.checkpoints / "1" / "metrics" / "metrics", 0)
    assert load_model(two.path).step == 4
    assert folders(two) == ["1.damaged", "1.damaged-2", "4"]


@pytest.mark.run
@pytest.mark.parametrize("seed", range(50))
# Threads of Orbax report the end of a failed read to an event loop that is closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_flipped_bit_is_loaded_without_a_word(two, capsys, seed):
    files = [path for path in sorted(two.checkpoints.rglob("*")) if path.is_file()]
    flip(files[seed % len(files)], int(np.random.default_rng(seed).integers(2**40)))
    said = ""
    for read, expected in ((load_model, 1), (lambda path: resume(path / "checkpoints"), 4)):
        try:
            found = read(two.path)
        except UserError as error:
            said, found = said + str(error), None
        else:
            # The second may find what the first has named and set aside.
            said += capsys.readouterr().err
            assert_same(found.variables, make_state(seed=int(found.step)).variables)
        assert (found is not None and int(found.step) == expected) or "is damaged" in said


def test_an_array_that_was_damaged_on_its_way_to_the_disk_is_found(run, monkeypatch, capsys):
    save = Checkpointer.save_checkpointables

    def save_another(self, step, items, **options):
        return save(self, step, {**items, "model": make_state(seed=9).variables}, **options)

    monkeypatch.setattr(Checkpointer, "save_checkpointables", save_another)
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=4), 4), metrics={"top1": 0.1})
    assert resume(run.checkpoints).step == 1
    said = capsys.readouterr().err
    assert re.search(r"checkpoint 4 of \S+ is damaged \(the array model/params/\S+ differs from its checksum\)", said)


def test_a_checkpoint_of_an_earlier_version_is_read(run):
    (run.checkpoints / "1" / "checksums.json").unlink()
    assert load_model(run.path).step == 1
    assert resume(run.checkpoints).step == 1


@pytest.mark.parametrize("name", ["metrics/metrics", "model", "model/_METADATA", "model/manifest.ocdbt"])
def test_a_refusal_of_the_system_is_not_called_damage(run, name):
    path = run.checkpoints / "1" / name
    path.rename(run.path / "moved")
    path.symlink_to(path.name)  # To itself: cannot be read, even by root.
    for read in (load_model, lambda path: resume(path / "checkpoints")):
        with pytest.raises(UserError, match=rf" cannot be read: {os.strerror(errno.ELOOP)}\. ") as caught:
            read(run.path)
        assert str(run.checkpoints) in str(caught.value)
        assert "remove" not in str(caught.value)
    path.unlink()
    (run.path / "moved").rename(path)
    assert load_model(run.path).step == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("without a number"), "without a number"),
        (
            ValueError("INTERNAL: Error reading file: Stale handle [os_error_code='116' source locations]"),
            "Stale file handle",
        ),
        (
            ValueError("INTERNAL: Error: Input/output error [spec='{\"a\": false}'] [os_error_code='5'] [at='[0]']"),
            "Input/output error",
        ),
    ],
)
def test_the_systems_reason_is_reported(run, monkeypatch, error, reason):
    def fail(*_):
        raise KeyError("Failed to load") from error  # As Orbax wraps it.

    monkeypatch.setattr(Checkpointer, "load_checkpointables", fail)
    with pytest.raises(UserError, match=rf"checkpoint 1 of .* cannot be read: {reason}\. It may be whole"):
        load_model(run.path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error. They may be whole: check the disk"),
        (OSError("without a number"), "without a number. They may be whole: fix that"),
    ],
)
def test_a_folder_that_the_system_does_not_list_is_not_called_damaged(run, monkeypatch, error, reason):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Checkpointer, "__init__", fail)
    for read in (load_model, lambda path: resume(path / "checkpoints")):
        with pytest.raises(UserError) as caught:
            read(run.path)
        assert str(caught.value) == f"the checkpoints in {run.checkpoints} cannot be read: {reason} and run again"


def log_elsewhere():
    """Starts a thread that logs when the returned function is called."""

    def log():
        asked.wait()
        logging.getLogger("absl").error("elsewhere")

    asked, thread = threading.Event(), threading.Thread(target=log)
    thread.start()
    return lambda: (asked.set(), thread.join())


def test_only_orbax_is_kept_from_logging_and_only_while_it_is_called(run, monkeypatch, caplog):
    log_from_another_thread = log_elsewhere()

    def fail(*_):
        logging.getLogger("absl").error("Failed to load")
        logging.getLogger("asyncio").critical("Task exception was never retrieved")
        log_from_another_thread()
        raise KeyError("Failed to load")

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [(logger.level, logger.disabled, list(logger.filters)) for logger in loggers]
    monkeypatch.setattr(Checkpointer, "load_checkpointables", fail)
    with pytest.raises(UserError):
        load_model(run.path)
    loggers[0].error("afterwards")
    assert caplog.messages == ["elsewhere", "afterwards"]
    assert [(logger.level, logger.disabled, list(logger.filters)) for logger in loggers] == before


def test_a_thread_that_orbax_leaves_behind_stays_without_logs(run, monkeypatch, caplog):
    left = []

    def fail(*_):
        left.append(log_elsewhere())
        raise KeyError("Failed to load")

    monkeypatch.setattr(Checkpointer, "load_checkpointables", fail)
    with pytest.raises(UserError):
        load_model(run.path)
    logging.getLogger("absl").error("afterwards")
    for log_from_it in left:
        log_from_it()
    assert caplog.messages == ["afterwards"]


def test_what_orbax_reports_after_a_failure_is_dropped_and_nothing_else(run, monkeypatch):
    def fail(*_):
        raise KeyError("Failed to load")

    async def unfinished():
        pass

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda late: reported.append(late.object or str(late.exc_value)))
    monkeypatch.setattr(Checkpointer, "load_checkpointables", fail)
    hooks = []
    for _ in range(2):
        with pytest.raises(UserError):
            load_model(run.path)
        hooks.append(sys.unraisablehook)
    assert hooks[0] is hooks[1]  # A hook for each failure would slow down a program that goes on.
    for error in (RuntimeError("Event loop is closed"), RuntimeError("other"), ValueError("Event loop is closed")):
        sys.unraisablehook(SimpleNamespace(object=None, exc_value=error))
    code = compile("async def read(): pass", "/orbax/checkpoint/serialization.py", "exec")
    exec(code, found := {})
    here, orbax = unfinished(), found["read"]()
    for coroutine in (here, orbax):
        sys.unraisablehook(SimpleNamespace(object=coroutine, exc_value=Exception("not awaited")))
        coroutine.close()
    assert reported == ["other", "Event loop is closed", here]


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_a_lack_of_memory_is_not_called_damage(run, monkeypatch, error):
    def fail(*_):
        raise KeyError("Failed to load") from error

    monkeypatch.setattr(Checkpointer, "load_checkpointables", fail)
    with pytest.raises(type(error)):
        load_model(run.path)


def test_an_item_without_its_sharding_file_is_read(run):
    (run.checkpoints / "1" / "checksums.json").unlink()  # As in an earlier version.
    (run.checkpoints / "1" / "model" / "_sharding").write_bytes(b"")
    assert_same(load_model(run.path).variables, make_state(seed=1).variables)


@pytest.mark.parametrize("method", ["__init__", "reload"])
def test_orbax_may_read_damaged_metrics_once(run, monkeypatch, method):
    reads = iter(["{", *["{}"] * 9])
    before_first(monkeypatch, method, lambda: json.loads(next(reads)))
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=2), 2))
    assert resume(run.checkpoints).step == 2


@pytest.mark.parametrize("content", [b"", b'{"to', b"\xff\x00", b"null", b"{}"])
def test_damaged_metrics_are_named_and_can_be_removed(run, content):
    folder = run.checkpoints / "1" / "metrics"
    (folder / "metrics").write_bytes(content)
    for read in (load_model, lambda path: resume(path / "checkpoints")):
        with pytest.raises(UserError) as caught:
            read(run.path)
        message = str(caught.value)
        assert message.startswith(f"{folder / 'metrics'} is damaged (")
        assert message.endswith(f"; remove the folder {folder} to continue without them")
    shutil.rmtree(folder)
    assert (load_model(run.path).step, load_model(run.path).metrics) == (1, {})
    assert resume(run.checkpoints).step == 1


def test_no_checkpoint_is_deleted_before_a_later_one_is_on_the_disk(run, monkeypatch):
    earlier, later = run.checkpoints / "1", run.checkpoints / "3"
    whole, sync = len(list(earlier.rglob("*"))), os.fsync
    named, unnamed = set(), set()  # What was synchronised after, and before, the folder was renamed.

    def recorded(descriptor):
        sync(descriptor)
        assert len(list(earlier.rglob("*"))) == whole
        (named if later.exists() else unnamed).add(os.fstat(descriptor).st_ino)

    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(), 2))
        monkeypatch.setattr(os, "fsync", recorded)
        checkpoints.save(at(make_state(), 3), metrics={"top1": 0.9})
    assert not earlier.exists()
    saved = {str(path.relative_to(later)): path.stat().st_ino for path in (later, *later.rglob("*"))}
    assert named >= {run.checkpoints.stat().st_ino, *saved.values()}
    stamps = {saved.pop(name) for name in ("_CHECKPOINT_METADATA", "commit_success.txt")}  # Nothing is lost with them.
    assert unnamed >= set(saved.values()) - stamps


def test_the_name_of_the_folder_of_checkpoints_reaches_the_disk(tmp_path, monkeypatch):
    sync, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    with open_checkpoints(tmp_path / "checkpoints"):
        assert (tmp_path / "checkpoints").exists()
        assert tmp_path.stat().st_ino in synced


@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_that_does_not_reach_the_disk_costs_no_earlier_one(run, monkeypatch, named):
    def full(_):
        if (run.checkpoints / "2").exists() == named:
            raise OSError(errno.ENOSPC, "No space left on device")

    refused = pytest.raises(
        UserError, match=r"step 2 could not be .*: No space left on device \(0\.\d+ MB needed, .* MB free\); ear"
    )
    with refused, open_checkpoints(run.checkpoints) as checkpoints:
        monkeypatch.setattr(os, "fsync", full)
        checkpoints.save(at(make_state(), 2), metrics={"top1": 0.9})
    monkeypatch.undo()
    assert (run.checkpoints / "2").exists() == named
    shutil.rmtree(run.checkpoints / "2", ignore_errors=True)
    assert_same(resume(run.checkpoints).variables, make_state(seed=1).variables)


@pytest.mark.parametrize("name", ["2.orbax-checkpoint-tmp", "model.orbax-checkpoint-tmp"])
def test_nothing_waits_for_a_folder_that_the_disk_refuses(run, monkeypatch, name):
    mkdir, refused = os.mkdir, []

    def full(path, *rest, **options):
        if Path(path).name == name:
            refused.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *rest, **options)

    before = set(threading.enumerate())
    refusal = pytest.raises(UserError, match=r"step 2 could not be .*: No space left on device")
    with refusal, open_checkpoints(run.checkpoints) as checkpoints:
        monkeypatch.setattr(os, "mkdir", full)
        checkpoints.save(at(make_state(), 2), metrics={"top1": 0.9})
    assert refused
    started = set(threading.enumerate()) - before
    for thread in started:
        thread.join(10)
    assert not [thread.name for thread in started if thread.is_alive()]


def test_a_file_system_that_cannot_synchronise_folders_is_accepted(run, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(), 2))
        assert checkpoints.last_step == 2


def test_leftovers_of_a_deletion_cut_short_are_deleted(run):
    shutil.copytree(run.checkpoints / "1" / "training", run.checkpoints / f"0{checkpoint.UNFINISHED}" / "training")
    assert load_model(run.path).step == 1
    assert resume(run.checkpoints).step == 1
    assert [path.name for path in run.checkpoints.iterdir()] == ["1"]


def test_files_that_a_network_drive_does_not_delete_yet_are_deleted_after_the_next_save(run, monkeypatch):
    def keep(folder, *, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(), 2))
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "shutil", SimpleNamespace(rmtree=keep))
            checkpoints.save(at(make_state(), 3), metrics={"top1": 0.9})
            left = run.checkpoints / f"1{checkpoint.UNFINISHED}"
            whole = {path: path.stat().st_mtime_ns for path in left.rglob("*")}
            checkpoints.save(at(make_state(), 4))
        # No seal of another checkpoint is written into it.
        assert {path: path.stat().st_mtime_ns for path in left.rglob("*")} == whole != {}
        checkpoints.save(at(make_state(), 5))
    assert {path.name for path in run.checkpoints.iterdir()} == {"3", "4", "5"}


@pytest.mark.parametrize(
    ("config", "classes", "message"),
    [
        (CONFIG, 5, r"model/params/\S+ is float32\[.*3\] there, float32\[.*5\] here"),
        (dataclasses.replace(CONFIG, model=ModelConfig(widths=(4,), blocks=(2,))), 3, r"is absent there, float32"),
        (dataclasses.replace(CONFIG, optim=OptimConfig(name="adam")), 3, r"training/opt_state/\S+ is absent there"),
        (dataclasses.replace(CONFIG, optim=OptimConfig(ema_decay=0.5)), 3, "has no 'average'"),
    ],
)
def test_another_model_is_refused_by_its_first_path(tmp_path, config, classes, message):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(make_state(), 1))
        with pytest.raises(UserError, match=message) as caught:
            checkpoints.restore(make_state(config, classes=classes))
    assert "\n" not in str(caught.value)


def test_what_only_the_checkpoint_has_is_refused(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(make_state(dataclasses.replace(CONFIG, model=ModelConfig(widths=(4,), blocks=(2,)))), 1))
        with pytest.raises(UserError, match=r"model/\S+ is float32\[.*\] there, absent here; give the settings"):
            checkpoints.restore(make_state())


CANNOT_WRITE = """
import resource, sys, jax.numpy as jnp
from pathlib import Path
from types import SimpleNamespace
from jaxcnn.run.checkpoint import open_checkpoints
sys.path[:0] = ["tests", "tests/run"]
from test_checkpoint import make_state
state = make_state()
with open_checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(state._replace(step=jnp.int32(1)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    checkpoints.save(state._replace(step=jnp.int32(2)))
"""


@pytest.mark.run
def test_a_failed_save_is_reported_and_loses_nothing(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CANNOT_WRITE, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=120
    )
    *_, last = done.stderr.strip().splitlines()
    assert re.search(
        r"UserError: the checkpoint of step 2 could not be written to .*: File too large \(.* MB needed, .* free\); ",
        last,
    )
    assert "ERROR" not in done.stderr
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step == 1
        assert_same(checkpoints.restore(make_state(seed=1)).variables, make_state().variables)


def test_a_damaged_checkpoint_is_named(run):
    # Orbax is not asked to read it: it would leave coroutines behind, which warn when they are collected.
    for path in run.checkpoints.rglob("ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    for read in (load_model, lambda path: resume(path / "checkpoints")):
        with pytest.raises(UserError, match=r"checkpoint 1 of .* is damaged \(.+ checksum\); remove its folder"):
            read(run.path)


SAVES_FOREVER = """
import sys, itertools, jax.numpy as jnp
from pathlib import Path
from types import SimpleNamespace
from jaxcnn.run.checkpoint import open_checkpoints
sys.path[:0] = ["tests", "tests/run"]
from test_checkpoint import make_state
state = make_state()
with open_checkpoints(Path(sys.argv[1])) as checkpoints:
    for step in itertools.count(1):
        checkpoints.save(state._replace(step=jnp.int32(step)))
        print(step, flush=True)
"""


@pytest.mark.run
def test_a_save_cut_short_is_not_taken_for_a_checkpoint(tmp_path):
    root = Path(__file__).parents[2]
    for delay in (0.003, 0.011, 0.023):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOREVER, str(tmp_path / str(delay))],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(2):
            said = process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        said = (process.stdout.read() or said).split()[-1]
        process.wait()
        process.stdout.close()
        with open_checkpoints(tmp_path / str(delay)) as checkpoints:
            assert checkpoints.last_step is not None
            assert checkpoints.last_step >= int(said)
            restored = checkpoints.restore(make_state(seed=1))
        assert_same(restored.variables, make_state().variables)
        assert not [path for path in (tmp_path / str(delay)).iterdir() if not path.name.isdigit()]


def test_a_loaded_model_has_what_the_run_recorded(tmp_path):
    run, config = (
        Workdir(tmp_path),
        dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, precision="bfloat16")),
    )
    run.record(config, Classes(("cat", "dog", "eel"), ("n1", "n2", "n3"), "pets", "MIT"))
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(config), 3))
    model = load_model(tmp_path)
    assert (model.config, model.wnids, model.dataset, model.license) == (config, ("n1", "n2", "n3"), "pets", "MIT")
    # It computes in float32, whatever it was trained in.
    assert (model.model.dtype, model.model.classes) == (jnp.float32, 3)
    assert (model.step, model.metrics, model.calibration, model.temperature) == (3, {}, None, 1)
    for step, temperature in ((3, 1.5), (2, 1)):
        fitted = Calibration(step=step, temperature=1.5, count=9, ece_before=0.2, ece_after=0.1)
        write_calibration(fitted, run.calibration)
        assert load_model(tmp_path).temperature == temperature


@pytest.mark.parametrize("metrics", [{"top1": 0.5}, None])
def test_listeners_are_called_after_every_save(tmp_path, metrics):
    seen, run = [], Workdir(tmp_path)
    listeners = [lambda: seen.append(folders(run)), lambda: seen.append("second")]
    with open_checkpoints(run.checkpoints, listeners) as checkpoints:
        for step in (9, 10, 11):
            checkpoints.save(at(make_state(), step), metrics=metrics)
            assert checkpoints.last_step == step
    # A best checkpoint is kept until there is a better one, or as good a later one.
    assert seen == [["9"], "second", ["10", "9"], "second", ["10", "11"], "second"]


def test_one_of_several_processes_reads_without_the_others(two):
    with open_checkpoints(two.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=12), 12))
    (two.checkpoints / "3.damaged").mkdir()
    reader = checkpoint_reading.LoneReader(two.checkpoints)
    assert reader.checkpoints == [
        Saved(1, {"top1": 0.5}),
        Saved(4, {"top1": 0.1}),
        Saved(12, None),
    ]
    for saved in reader.checkpoints:
        expected = make_state(seed=saved.step)
        found = checkpoint_reading.load_items(reader, saved, {"model": expected.variables}, once=checkpoint._call)
        assert_same(found["model"], expected.variables)


def test_the_best_checkpoint_is_the_latest_of_those_with_the_highest_metric():
    def best(*top1s):
        saved = [Saved(step, None if top1 is None else {"top1": top1}) for step, top1 in enumerate(top1s)]
        return checkpoint._best(saved).step

    assert [best(None, None), best(0.5, None), best(0.5, 0.4), best(0.4, 0.5), best(0.5, 0.5, 0.1)] == [1, 0, 0, 1, 1]


def test_reports_of_a_run_that_goes_on_take_the_same_epoch_for_the_best():
    # The loss decides nothing.
    records = [validation_record(step, top1=top1, loss=float(step)) for step, top1 in enumerate((0.1, 0.5, 0.5, 0.4))]
    saved = [Saved(record.step, {"top1": record.top1, "loss": record.loss}) for record in records]
    best = RunLog([], records).best
    assert best is not None
    assert best.step == checkpoint._best(saved).step == 2
    assert RunLog([], []).best is None


def test_steps_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("9", "10", "100", "9.damaged", f"8{checkpoint.UNFINISHED}", "notes"):
        (tmp_path / name).mkdir()
    assert checkpoint_reading.finished_steps(tmp_path) == [9, 10, 100]


def test_the_advice_names_the_latest_other_checkpoint(two, monkeypatch):
    def fail(*_):
        raise KeyError("damage")

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with open_checkpoints(two.checkpoints) as checkpoints:
        checkpoints.save(at(make_state(seed=12), 12))
    monkeypatch.setattr(Checkpointer, "load_checkpointables", fail)
    monkeypatch.setattr(Path, "rename", refuse)
    for read, damaged, other in ((load_model, 1, 12), (lambda path: resume(path / "checkpoints"), 12, 4)):
        with pytest.raises(UserError) as caught:
            read(two.path)
        assert str(caught.value) == (
            f"checkpoint {damaged} of {two.checkpoints} is damaged (KeyError); remove its folder to resume from "
            f"checkpoint {other}, or train in another --workdir"
        )


@pytest.mark.parametrize(
    ("message", "number", "reason"),
    [
        (
            "Error writing local file: No space left on device [os_error_code='28' source locations='a.cc:1']",
            28,
            "No space left on device",
        ),
        ("Could not open [os_error_code='116']", 116, "Stale file handle"),
        ("Disk quota exceeded [os_error_code=122]", 122, "Disk quota exceeded"),
    ],
)
def test_the_systems_number_is_found_in_messages_of_tensorstore(message, number, reason):
    found = checkpoint_reading.system_error(ValueError(message))
    assert (found.errno, found.strerror) == (number, reason)
    assert checkpoint_reading.system_error(ValueError("no such thing")) is None
    given = OSError(5, "x")
    assert checkpoint_reading.system_error(given) is given


def test_checkpoints_are_selected_by_a_metric_of_the_evaluation():
    from jaxcnn.metrics import Evaluation

    assert checkpoint_reading.SELECTED_BY in Evaluation.__annotations__
