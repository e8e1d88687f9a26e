"""What every test runs under: strict promotion, and no look at the machine's own settings."""

import os
import re
import signal
import tempfile

import hypothesis
import jax
import pytest

# Shells have what they start in the background ignore it, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests compile the same small networks: within a session, each is compiled once.
COMPILED = tempfile.TemporaryDirectory(prefix="jaxcnn-compiled-")
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)

# A property holds however busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

OF_THE_MACHINE = re.compile(
    r"(SLURM|OMPI|PMI|MV2|UVICORN|OTEL|LISTEN|TTY)_\w+|RANK|WORLD_SIZE|TPU_WORKER_HOSTNAMES|JOB_COMPLETION_INDEX"
    r"|WEB_CONCURRENCY|PROMETHEUS_MULTIPROC_DIR|FORCE_COLOR|NO_COLOR"
)
"""Variables of launchers, servers and terminals, which would change what commands do and print."""

LONGEST = ("test_readme.py", "test_training.py")
"""Files of whole runs. In the end one of them would run alone."""


@pytest.fixture(scope="session")
def clients() -> str:
    """The Python of an environment with packages that are no part of the lock; see `clients.py`."""
    from clients import find_python

    return find_python()


def pytest_sessionstart():
    """Hides variables of the machine from the tests and from what they start."""
    for name in filter(OF_THE_MACHINE.fullmatch, list(os.environ)):
        del os.environ[name]


def pytest_unconfigure():
    """Removes what was compiled."""
    COMPILED.cleanup()


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
