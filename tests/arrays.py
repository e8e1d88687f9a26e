"""Random arrays for tests."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Draws float32 numbers with NumPy: JAX would compile a program for each shape, which can take seconds."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))
