"""Compiled programs on disk."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxcnn.ops import compilation_cache
from jaxcnn.ops.compilation_cache import describe_processor, keep_compilations

ROOT = Path(__file__).parent.parent.parent
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
PROGRAM = """
import pathlib, sys
from jaxcnn.ops import compilation_cache
compilation_cache.has_onednn = lambda _: False
compilation_cache.LEAST_SECONDS = 0.0
assert compilation_cache.keep_compilations(pathlib.Path(sys.argv[1]))
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
print(jax.jit(lambda x: x * 3)(2.0))
print("hits", events.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.fixture
def settings():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_within_bounds_for_each_kind_of_processor(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(compilation_cache, "has_onednn", lambda _: False)
    assert keep_compilations(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / describe_processor())
    assert jax.config.jax_compilation_cache_max_size == 2 * 2**30


@pytest.mark.parametrize(("folder", "onednn"), [("elsewhere", False), ("", True)])
def test_nothing_is_kept_where_it_may_or_can_not(settings, tmp_path, monkeypatch, folder, onednn):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    monkeypatch.setattr(compilation_cache, "has_onednn", lambda _: onednn)
    before = jax.config.jax_compilation_cache_dir
    assert not keep_compilations(tmp_path)
    assert jax.config.jax_compilation_cache_dir == before


def test_another_processor_has_another_folder(monkeypatch):
    def folder(text):
        monkeypatch.setattr(Path, "read_text", lambda _: text)
        return describe_processor()

    zen = "processor: 0\nmodel name : EPYC\nflags : avx2 avx512f\ncpu MHz : 2000\n"
    assert folder(zen) == folder(zen.replace("2000", "3000") + zen)
    assert folder(zen) != folder(zen.replace(" avx512f", ""))


@pytest.mark.run
def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def run():
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    assert run() == "6.0\nhits 0\n"
    assert run() == "6.0\nhits 1\n"
