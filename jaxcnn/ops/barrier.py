"""Where XLA must not move work."""

from jax import Array, lax


def materialize(x: Array) -> Array:
    """Computes x once and for all: XLA would compute it again for each use, or do it inside of a slower loop.

    Augmentation with everything on takes ten times as long without.
    """
    kept: Array = lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
    return kept
