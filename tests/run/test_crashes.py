"""Power cuts at any moment of a training: no finished step is lost, and none is resumed with other values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crashes import SCHEDULES, check_replay, crash_often, record
from log_lines import train_record

from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.run.checkpoint import open_checkpoints
from jaxcnn.run.metrics_log import open_log, read_log
from jaxcnn.state import create_state

pytestmark = pytest.mark.drill

STEPS = {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.1}
"""Top-1 accuracy by step."""
PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/run"]
from test_crashes import train
train(Path(sys.argv[1]))
"""


def state_of(step):
    config = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(1,)))
    model, optimizer = registry.build(config.model, classes=3), make_optimizer(config.optim, steps=100)
    first = create_state(jax.random.key(0), model=model, optimizer=optimizer, image_size=8, averaged=False)
    variables = jax.tree.map(lambda leaf: leaf + step, first.variables)
    return first._replace(step=jnp.int32(step), variables=variables)


def train(workdir):
    with open_checkpoints(workdir / "checkpoints") as checkpoints, open_log(workdir) as log:
        for step, top1 in STEPS.items():
            log.write(train_record(step))
            log.sync()
            checkpoints.save(state_of(step), metrics={"top1": top1})
            print(step, flush=True)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The workdir that the program wrote, and its calls."""
    root, log = tmp_path_factory.mktemp("traced"), tmp_path_factory.mktemp("log") / "calls"
    return root, record(PROGRAM, root, log=log)


def test_the_calls_add_up_to_the_files(recorded, tmp_path):
    root, calls = recorded
    assert check_replay(root, calls, tmp_path) == [b"1", b"2", b"3", b"4"]
    assert (root / "checkpoints").is_dir()


def test_no_power_cut_loses_a_finished_step(recorded, tmp_path):
    root, calls = recorded
    states = {step: state_of(step) for step in STEPS}
    for seed, workdir, printed in crash_often(root, calls, tmp_path, schedules=SCHEDULES):
        finished = int((printed or [b"0"])[-1])
        with open_checkpoints(workdir / "checkpoints") as checkpoints:
            step = checkpoints.last_step or 0
            assert step in (finished, finished + 1), seed
            if step:
                restored = checkpoints.restore(states[1])
                assert int(restored.step) == step, seed
                jax.tree.map(np.testing.assert_array_equal, restored, states[step])
        # The log has all records up to the checkpoint, and what is read of it was written.
        records = read_log(workdir / "metrics.jsonl").train
        assert [record.loss for record in records] == [1.0] * len(records), seed
        assert [record.step for record in records][:step] == list(STEPS)[:step], seed
        with open_log(workdir):
            pass
