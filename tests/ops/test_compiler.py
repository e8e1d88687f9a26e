"""The options given to XLA: only options that it knows, and none that the user has set."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxcnn.ops import compiler


@pytest.fixture(autouse=True)
def uncached():
    """Each test asks XLA again, and leaves nothing cached."""
    for cached in (compiler.compiler_options, compiler.has_onednn):
        cached.cache_clear()
    yield
    for cached in (compiler.compiler_options, compiler.has_onednn):
        cached.cache_clear()


def test_this_xla_knows_the_options():
    assert compiler.compiler_options() == compiler.CPU_OPTIONS


def test_unknown_options_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "CPU_OPTIONS", {"xla_no_such_thing": True, "xla_cpu_prefer_vector_width": 256})
    assert compiler.compiler_options() == {"xla_cpu_prefer_vector_width": 256}


def test_the_users_flags_take_precedence(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=false")
    assert "xla_cpu_experimental_onednn_custom_call" not in compiler.compiler_options()


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_other_backends_get_none(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert compiler.compiler_options() == {}
    assert not compiler.has_onednn("float32")


def test_without_the_option_there_is_no_onednn(monkeypatch):
    monkeypatch.setattr(compiler, "CPU_OPTIONS", {})
    assert not compiler.has_onednn("float32")


def test_onednn_has_bfloat16_where_the_processor_has_instructions_for_it():
    processor = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if {"avx512_bf16", "amx_bf16"} & set(processor):
        assert compiler.has_onednn("bfloat16")
    elif "avx2" in processor and not {"avx512f", "avx_ne_convert"} & set(processor):
        assert not compiler.has_onednn("bfloat16")
    else:
        pytest.skip("what XLA does on this processor is not known")


def test_jit_computes_and_counts_its_traces():
    twice = compiler.jit(lambda x, *, times: x * times, static_argnames="times")
    assert twice(jnp.float32(2), times=3.0).item() == 6
    assert twice(jnp.float32(3), times=3.0).item() == 9
    assert twice.jitted()._cache_size() == 1


def test_importing_the_library_starts_no_backend():
    code = "import jaxcnn.training, jax._src.xla_bridge as bridge; print(bridge.backends_are_initialized())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
