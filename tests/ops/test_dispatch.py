"""Which implementation is traced: never a cached one of the other kind."""

import jax
import jax.numpy as jnp
import pytest
from arrays import normal

from jaxcnn.ops import dispatch
from jaxcnn.ops.dispatch import cpu_kernels_available, use_cpu_kernels, using_cpu_kernels
from jaxcnn.ops.pool import max_pool


def test_kernels_are_off_unless_enabled():
    assert not using_cpu_kernels()
    with use_cpu_kernels(True):
        assert using_cpu_kernels()
        with use_cpu_kernels(False):
            assert not using_cpu_kernels()
        assert using_cpu_kernels()
    assert not using_cpu_kernels()


def test_an_error_leaves_the_context():
    with pytest.raises(ZeroDivisionError), use_cpu_kernels(True):
        raise ZeroDivisionError
    assert not using_cpu_kernels()


def test_each_choice_has_a_trace_of_its_own_also_in_an_inner_jit():
    traces = []

    @jax.jit
    def inner(x):
        traces.append(using_cpu_kernels())
        return x + 1

    outer = {enabled: jax.jit(lambda x: inner(x)) for enabled in (True, False)}
    for enabled in (True, False, True, False):
        with use_cpu_kernels(enabled):
            outer[enabled](jnp.float32(0))
    assert traces == [True, False]


def test_a_gradient_may_be_taken_after_the_context_is_left():
    with use_cpu_kernels(True):
        _, back = jax.vjp(max_pool, normal(1, 4, 4, 1))
    text = str(jax.make_jaxpr(back)(jnp.ones((1, 2, 2, 1))))
    assert "select_and" not in text  # XLA's gradient of a maximum pool


@pytest.mark.parametrize(
    ("devices", "onednn", "available"), [(1, True, True), (1, False, False), (4, True, False), (4, False, False)]
)
def test_kernels_are_for_one_device_with_onednn(monkeypatch, devices, onednn, available):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(dispatch, "has_onednn", lambda dtype: onednn)
    assert cpu_kernels_available() == available
