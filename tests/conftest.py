"""What every test runs under: strict promotion, and no look at the machine's own settings."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """The longest file first: pytest-xdist keeps the order, and nothing runs alone in the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
