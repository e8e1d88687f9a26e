"""The steps of an epoch: how far the host runs ahead of the device."""

import jax
import jax.numpy as jnp
import pytest

from jaxcnn.run_epoch import _limit_queue
from jaxcnn.step import StepMetrics


class Loss:
    """Notes that somebody waits for it."""

    def __init__(self, number, waits):
        self.number, self.waits = number, waits

    def block_until_ready(self):
        self.waits.append(self.number)


@pytest.mark.parametrize(("backend", "expected"), [("gpu", [1, 2]), ("tpu", [1, 2]), ("cpu", [1, 2, 3])])
def test_the_host_waits_for_the_step_before_the_last_one(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    waits, window = [], []
    for number in (1, 2, 3):
        metrics = StepMetrics(Loss(number, waits), jnp.float32(0), jnp.float32(0))
        _limit_queue(metrics, window)
        window.append(metrics)
        # On an accelerator, a step and its pictures are in the queue while the one before it is computed.
        assert waits == expected[: number if backend == "cpu" else number - 1]
