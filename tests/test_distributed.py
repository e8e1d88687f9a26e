"""Several devices compute what one device computes, with the state copied to each of them or divided among them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxcnn import distributed
from jaxcnn.errors import UserError
from jaxcnn.processes import check_joined

ROOT = Path(__file__).parent.parent
TRAIN = (
    "-m jaxcnn.train --data.image_size 8 --model.widths 8 16 --model.blocks 1 1 --model.no_cpu_kernels "
    "--model.dropout .1 --augment.pad_crop .1 --augment.mixup .5 --augment.cutmix .5 --augment.erase .2 "
    "--augment.brightness .1 --optim.name muon --optim.learning_rate .01 --optim.schedule constant --optim.warmup 0 "
    "--optim.ema_decay .9 --batch_size 64"
).split()


def run(arguments: list[str], *, devices: int) -> subprocess.CompletedProcess[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def train(workdir: Path, *, devices: int, epochs: int) -> list[dict[str, float]]:
    """Trains or resumes a run, and returns its validation records."""
    done = run([*TRAIN, "--workdir", str(workdir), "--epochs", str(epochs)], devices=devices)
    assert done.returncode == 0, done.stderr
    assert f"resnet on {f'{devices} x ' if devices > 1 else ''}cpu;" in done.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "validation"]


@pytest.mark.slow
def test_four_devices_and_then_two_learn_what_one_learns(tmp_path):
    one = train(tmp_path / "one", devices=1, epochs=2)
    for devices, epochs in ((4, 1), (2, 2)):
        several = train(tmp_path / "several", devices=devices, epochs=epochs)
    assert [record["step"] for record in one] == [record["step"] for record in several] == [22, 44]
    assert one[0]["loss"] > one[1]["loss"]
    for name in ("loss", "top1"):
        assert [record[name] for record in several] == pytest.approx([record[name] for record in one], rel=1e-4)
    for file in ("model.onnx", "report.html"):
        assert (tmp_path / "several" / file).exists()


def test_a_batch_is_sharded_and_the_state_is_replicated():
    program = """
import numpy as np
from jaxcnn.distributed import fetch_rows, local_rows, make_mesh, place_state, shard_batch
mesh = make_mesh()
batch, state = shard_batch(np.arange(24).reshape(8, 3), mesh), place_state({"kernel": np.ones((8, 3))}, mesh)
parts = sorted(batch.addressable_shards, key=lambda part: part.device.id)
print([part.data[:, 0].tolist() for part in parts])
print([part.data.shape for part in state["kernel"].addressable_shards])
print(local_rows(8, mesh).tolist(), fetch_rows(batch)[:, 0].tolist())
"""
    done = run(["-c", program], devices=4)
    assert done.stdout.splitlines() == [
        "[[0, 3], [6, 9], [12, 15], [18, 21]]",
        str([(8, 3)] * 4),
        "[0, 1, 2, 3, 4, 5, 6, 7] [0, 3, 6, 9, 12, 15, 18, 21]",
    ], done.stderr


def test_large_arrays_are_sharded_along_their_largest_axis_that_fsdp_divides():
    program = """
import numpy as np
from jaxcnn.distributed import fetch_state, make_mesh, place_state
mesh = make_mesh(fsdp=2)
shapes = {"kernel": (3, 3, 64, 128), "odd": (64, 129), "last": (128, 128), "small": (64,), "step": ()}
state = {name: np.arange(np.prod(shape, dtype=int)).reshape(shape) for name, shape in shapes.items()}
placed = place_state(state, mesh)
print({name: leaf.addressable_shards[0].data.shape for name, leaf in placed.items()})
print(place_state(placed, mesh)["kernel"] is placed["kernel"])
print(all((fetch_state(placed)[name] == state[name]).all() for name in state))
"""
    done = run(["-c", program], devices=4)
    shapes = {"kernel": (3, 3, 64, 64), "last": (128, 64), "odd": (32, 129), "small": (64,), "step": ()}
    assert done.stdout.splitlines() == [str(shapes), "True", "True"], done.stderr


@pytest.mark.run
def test_what_is_computed_of_a_batch_is_sharded_as_the_batch_whatever_the_kernels_are():
    program = """
import jax, numpy as np
from jaxcnn.config import ModelConfig
from jaxcnn.distributed import fetch_rows, make_mesh, place_state, shard_batch
from jaxcnn.models import registry
from jaxcnn.state import init_variables
from jaxcnn.step import eval_step, feature_step
model = registry.build(ModelConfig(widths=(64,), blocks=(0,)), classes=128)
variables = init_variables(jax.random.key(0), model=model, image_size=8)
for fsdp in (2, 4):
    mesh = make_mesh(fsdp)
    images = shard_batch(np.zeros((4, 8, 8, 3), np.uint8), mesh)
    for function in (eval_step, feature_step):
        found = function(place_state(variables, mesh), images, model=model, mesh=mesh)
        print(*{part.data.shape for part in found.addressable_shards})
"""
    done = run(["-c", program], devices=4)
    assert done.stdout.splitlines() == ["(1, 128)", "(1, 64)"] * 2, done.stderr


STEPS = """
import jax, numpy as np
from jaxcnn import step
from jaxcnn.models import registry
from jaxcnn.config import AugmentConfig, ModelConfig, OptimConfig
from jaxcnn.distributed import make_mesh, place_state, shard_batch
from jaxcnn.optim import make_optimizer
from jaxcnn.state import create_state

def losses(fsdp, group=None, dropout=0.1, optimizer="muon", **how):
    model = registry.build(ModelConfig(widths=(32, 64), blocks=(1, 1), dropout=dropout, norm_group=group), classes=4)
    optimizer = make_optimizer(OptimConfig(name=optimizer, learning_rate=0.002, schedule="constant"), steps=9)
    state = create_state(jax.random.key(0), model=model, optimizer=optimizer, image_size=8, averaged=True)
    mesh = make_mesh(fsdp) if fsdp else None
    state, random, found = place_state(state, mesh), np.random.default_rng(0), []
    for _ in range(4):
        images, labels = random.integers(0, 255, (32, 8, 8, 3), np.uint8), random.integers(0, 4, 32, np.int32)
        state, metrics = step.train_step(
            state, shard_batch(images, mesh), shard_batch(labels, mesh), jax.random.key(1), model=model,
            optimizer=optimizer, augment_config=AugmentConfig(mixup=0.5), classes=4, resolution=8,
            label_smoothing=0.1, average_decay=0.9, mesh=mesh, **how,
        )
        found.append(float(metrics.loss) / 32)
    sharded = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    return np.array(found + [float(abs(leaf).sum()) for leaf in jax.tree.leaves(state.evaluated)]), sharded
"""


@pytest.mark.run
def test_a_sharded_state_learns_what_a_replicated_one_learns():
    program = f"""{STEPS}
alone, _ = losses(0)
for fsdp in (1, 2, 8):
    found, sharded = losses(fsdp)
    np.testing.assert_allclose(found, alone, rtol=1e-5, err_msg=str(fsdp))
    print(fsdp, sharded)
"""
    done = run(["-c", program], devices=8)
    (_, none), (_, two), (_, eight) = (line.split() for line in done.stdout.splitlines())
    assert int(none) == 0 < int(two) == int(eight), done.stderr


@pytest.mark.run
def test_parts_of_a_batch_add_up_to_the_batch_and_nothing_is_lost_by_computing_again():
    program = f"""{STEPS}
for fsdp, parts in ((0, 4), (1, 2)):
    whole, _ = losses(fsdp, group=4, dropout=0.0)
    added, _ = losses(fsdp, group=4, dropout=0.0, accumulate=parts)
    np.testing.assert_allclose(added, whole, rtol=2e-5)
    again, _ = losses(fsdp, group=4, dropout=0.0, remat=True)
    np.testing.assert_allclose(again, whole, rtol=2e-5)
other, _ = losses(0, dropout=0.0)
print(abs(other - losses(0, group=4, dropout=0.0)[0]).max() > 1e-3)
"""
    done = run(["-c", program], devices=4)
    assert done.stdout.split() == ["True"], done.stderr


def test_one_device_gets_all_of_the_arrays():
    arrays = np.ones((3, 2), np.float32)
    assert distributed.make_mesh() is None
    assert distributed.shard_batch(arrays, None) is arrays
    placed = distributed.place_state({"kernel": arrays}, None)["kernel"]
    np.testing.assert_array_equal(placed, arrays)
    assert placed.committed
    assert distributed.local_rows(3, None).tolist() == [0, 1, 2]
    distributed.check_devices(7)


def test_what_cannot_be_sharded_equally_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    distributed.check_devices(64, fsdp=4)
    with pytest.raises(UserError, match="batch_size is 100, which cannot be divided among the 8 devices here"):
        distributed.check_devices(100)
    with pytest.raises(UserError, match=r"parallel\.fsdp is 3, which does not divide the 8 devices here"):
        distributed.check_devices(64, fsdp=3)


def test_processes_with_different_numbers_of_devices_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=process) for process in (1, 0, 1, 1)])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(UserError, match=r"have 1, 3 devices; give all of them the same number"):
        distributed.check_devices(64)


def test_hosts_of_a_slice_that_are_not_joined_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="one of 4 hosts of a slice; start the same command on every one"):
        check_joined()
