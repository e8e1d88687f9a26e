"""Arrays that tests compute with."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Float32 numbers, drawn by NumPy: JAX would compile a program for each shape, which can take seconds."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))
