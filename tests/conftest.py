"""What every test runs under: strict promotion, and no look at the machine's own settings."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

LONGEST = ("test_readme.py", "test_train.py")
"""Files that start processes that train. In the end one of them would run alone."""


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
