"""Barriers that XLA must not move work across."""

from jax import Array, lax


def materialize(x: Array) -> Array:
    """Makes XLA compute `x` once and write it to memory before anything reads it.

    Without the barrier XLA fuses the computation of `x` into its readers. It then runs once for each reader, inside
    loops that are no longer fast ones: augmentation with everything on takes ten times as long.
    """
    kept: Array = lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
    return kept
