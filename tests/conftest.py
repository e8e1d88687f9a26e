"""What every test runs under: strict promotion, and no look at the machine's own settings."""

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

LONGEST = ("test_readme.py", "test_training.py")
"""Files of whole runs. In the end one of them would run alone."""


@pytest.fixture(scope="session")
def clients() -> str:
    """The Python of an environment with packages that are no part of the lock; see `clients.py`."""
    from clients import find_python

    return find_python()


def pytest_unconfigure():
    """Removes what was compiled."""
    COMPILED.cleanup()


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
