"""Checkpoints: what is kept, what is refused, and that a save cut short is never taken for whole."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import checkpoint, models
from jaxcnn.checkpoint import load_model, open_checkpoints
from jaxcnn.config import Config, DataConfig, ModelConfig, OptimConfig
from jaxcnn.errors import UserError
from jaxcnn.optim import make_optimizer
from jaxcnn.state import create_state
from jaxcnn.workdir import Classes, Workdir

CONFIG = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(1,)))
CLASSES = Classes(("cat", "dog", "eel"), (), "pets", "MIT")


def make_state(config=CONFIG, *, classes=3, seed=0):
    return create_state(
        jax.random.key(seed),
        model=models.build(config.model, classes=classes),
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


def test_the_last_and_the_best_are_kept(tmp_path):
    state = make_state()
    with open_checkpoints(tmp_path) as checkpoints:
        for step, top1 in ((1, 0.5), (2, None), (3, 0.7), (4, 0.7), (5, 0.6), (6, None)):
            checkpoints.save(at(state, step), metrics=None if top1 is None else {"top1": top1})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["4", "6"]


def test_the_model_loaded_is_the_best(tmp_path):
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


def test_the_model_loaded_is_the_average_where_there_is_one(tmp_path):
    config = dataclasses.replace(CONFIG, optim=OptimConfig(ema_decay=0.9))
    run = Workdir(tmp_path)
    run.record(config, CLASSES)
    state = make_state(config)
    state = at(state._replace(average=jax.tree.map(lambda leaf: leaf + 1, state.average)), 1)
    with open_checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(state)
    assert_same(load_model(tmp_path).variables, state.average)


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


CANNOT_WRITE = """
import resource, sys, jax.numpy as jnp
from pathlib import Path
from jaxcnn.checkpoint import open_checkpoints
sys.path.insert(0, "tests")
from test_checkpoint import make_state
state = make_state()
with open_checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(state._replace(step=jnp.int32(1)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    checkpoints.save(state._replace(step=jnp.int32(2)))
"""


def test_what_cannot_be_written_is_told_and_loses_nothing(tmp_path):
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", CANNOT_WRITE, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=120
    )
    *_, last = done.stderr.strip().splitlines()
    assert re.search(r"UserError: the checkpoint of step 2 could not be written to .*: File too large; ", last)
    assert "ERROR" not in done.stderr
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step == 1
        assert_same(checkpoints.restore(make_state(seed=1)).variables, make_state().variables)


RESTORE = """
import sys
from pathlib import Path
from jaxcnn.checkpoint import open_checkpoints
sys.path.insert(0, "tests")
from test_checkpoint import make_state
with open_checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.restore(make_state())
"""


def test_a_damaged_checkpoint_is_named(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(make_state(), 1))
    for path in tmp_path.rglob("ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    root = Path(__file__).parent.parent  # in another process: Orbax leaves what it had begun to read for the collector
    command = [sys.executable, "-W", "ignore", "-c", RESTORE, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert re.search(r"UserError: checkpoint 1 of .* is damaged \(\w+\); remove its folder", done.stderr)


SAVES_FOREVER = """
import sys, itertools, jax.numpy as jnp
from pathlib import Path
from jaxcnn.checkpoint import open_checkpoints
sys.path.insert(0, "tests")
from test_checkpoint import make_state
state = make_state()
with open_checkpoints(Path(sys.argv[1])) as checkpoints:
    for step in itertools.count(1):
        checkpoints.save(state._replace(step=jnp.int32(step)))
        print(step, flush=True)
"""


def test_a_save_cut_short_is_not_taken_for_whole(tmp_path):
    root = Path(__file__).parent.parent
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
        assert not [each for each in (tmp_path / str(delay)).iterdir() if not each.name.isdigit()]


def test_selection_is_by_a_metric_that_evaluation_gives():
    from jaxcnn.metrics import Evaluation

    assert checkpoint.SELECTED_BY in Evaluation.__annotations__
