"""Gradients of kernels on several devices: the shares of all devices are added in float32."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from arrays import normal
from jax.sharding import AxisType

from jaxcnn.ops.conv import conv
from jaxcnn.ops.device_sum import apply_kernel, sum_over

ROOT = Path(__file__).parent.parent.parent
ONE = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jaxcnn.distributed import make_mesh, place_state, shard_batch
from jaxcnn.models.layers import Dense
from jaxcnn.ops.bias import add_bias
from jaxcnn.ops.conv import conv
from jaxcnn.ops.device_sum import dot_general, sum_over

mesh, random = make_mesh(2), np.random.default_rng(0)

def gradients(function, x, kernel, dy):
    def compute(x, kernel, dy):
        with sum_over(mesh):
            y, back = jax.vjp(function, x, kernel)
        return y, *back(dy.astype(y.dtype))
    return jax.jit(compute)(shard_batch(x, mesh), place_state(kernel, mesh), shard_batch(dy, mesh))

def check_exact(function, x, kernel):
    # The shares of the devices are exact in bfloat16, their sum is not.
    dy = np.array([256, 1, 1, 1], np.float32).reshape(4, *(1,) * (x.ndim - 1))
    return float(gradients(function, x, kernel, dy)[2].squeeze())

ones = np.ones((4, 1, 1, 1), jnp.bfloat16)
print(check_exact(conv, ones, np.ones((1, 1, 1, 1), np.float32)))
print(check_exact(add_bias, ones, np.ones(1, np.float32)))
print(check_exact(
    lambda x, kernel: dot_general(x, kernel, (((1,), (0,)), ((), ()))), ones[:, 0, 0], np.ones((1, 1), np.float32)
))
for name, shape in (("kernel", (1, 1)), ("bias", (1,))):
    def dense(x, value):
        params = {"kernel": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)} | {name: value}
        return Dense(1, jnp.bfloat16).apply({"params": params}, x)

    print(check_exact(dense, ones[:, 0], np.ones(shape, np.float32)))

# Any window has the gradients of one device.
for options in ({}, dict(strides=(2, 1), padding=((1, 0), (2, 1))), dict(groups=4, dilation=(2, 1))):
    x, kernel = random.normal(size=(8, 6, 7, 8)), random.normal(size=(3, 2, 8 // options.get("groups", 1), 16))
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(np.float32)
    function = partial(conv, **options)
    dy = random.normal(size=jax.eval_shape(function, x, kernel).shape).astype(np.float32)
    y, back = jax.vjp(function, x, kernel)
    for found, expected in zip(gradients(function, x, kernel, dy), (y, *back(dy.astype(y.dtype))), strict=True):
        found, expected = (np.asarray(array, np.float32) for array in (found, expected))
        assert abs(found - expected).max() < 0.02 * abs(expected).max()
"""


@pytest.mark.run
def test_the_sum_over_devices_is_not_rounded():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["259.0"] * 5, done.stderr


def test_on_one_device_and_in_float32_nothing_changes():
    x, kernel = normal(2, 4, 4, 3), normal(3, 3, 3, 5)
    plain = str(jax.make_jaxpr(conv)(x, kernel))
    with sum_over(None):
        assert str(jax.make_jaxpr(conv)(x.astype(jnp.bfloat16), kernel)).count("custom_vjp") == 0
    with sum_over(ONE):
        assert str(jax.make_jaxpr(conv)(x, kernel)) == plain
    assert "custom_vjp" not in plain


def test_the_context_ends_before_the_gradient_is_taken():
    x, kernel = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4))
    with sum_over(ONE):
        y, back = jax.vjp(lambda x, kernel: apply_kernel(jnp.matmul, x, kernel), x, kernel)
    assert "shard_map" in str(jax.make_jaxpr(back)(y))
