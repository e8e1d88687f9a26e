"""Data parallelism: several devices compute what one device computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcnn import distributed
from jaxcnn.errors import UserError

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


@pytest.mark.run
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
from jaxcnn.distributed import shard_batch, replicate
batch, state = shard_batch({"images": np.arange(24).reshape(8, 3)}), replicate({"kernel": np.ones((8, 3))})
parts = sorted(batch["images"].addressable_shards, key=lambda part: part.device.id)
print([part.data[:, 0].tolist() for part in parts])
print([part.data.shape for part in state["kernel"].addressable_shards])
"""
    done = run(["-c", program], devices=4)
    assert done.stdout.splitlines() == ["[[0, 3], [6, 9], [12, 15], [18, 21]]", str([(8, 3)] * 4)], done.stderr


def test_one_device_gets_the_arrays_as_they_are():
    arrays = {"images": np.zeros((3, 2))}
    assert distributed.shard_batch(arrays) is distributed.replicate(arrays) is arrays
    distributed.check_devices(7)


def test_a_batch_that_cannot_be_sharded_equally_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    distributed.check_devices(64)
    with pytest.raises(UserError, match="batch_size is 100, which cannot be divided among the 8 devices here"):
        distributed.check_devices(100)


def test_several_machines_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="one of 4 processes"):
        distributed.check_devices(64)
