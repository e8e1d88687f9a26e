"""Which implementation the operations pick: XLA's own, or the kernels for CPUs.

The choice is a context of JAX, so it is part of the key under which JAX caches what it has traced and compiled. A
function traced with the kernels never serves a caller without them, not even through an inner `jax.jit`.

Only the forward pass of an operation reads the choice. JAX traces the backward pass of a `custom_vjp` later, when the
context has been left; backward passes therefore call kernels directly.
"""

from contextlib import AbstractContextManager

import jax

from jaxcnn.ops.compiler import has_onednn

_enabled = jax.make_user_context(default_value=False)  # type: ignore[no-untyped-call]


def use_cpu_kernels(enabled: bool) -> AbstractContextManager[None]:
    """Context in which the operations of this package are traced with their CPU kernels, or without.

    A network enters it in `apply`, see `jaxcnn.models.network`. Outside of it the kernels are off.
    """
    context: AbstractContextManager[None] = _enabled(enabled)
    return context


def using_cpu_kernels() -> bool:
    """Whether the operation that is being traced should use its CPU kernel."""
    enabled: bool = _enabled.value
    return enabled


def cpu_kernels_available() -> bool:
    """Whether the CPU kernels are faster than XLA's own operations here: one CPU device, whose XLA has oneDNN.

    The kernels transpose whole batches, which cannot be sharded over devices. XLA makes several devices of a CPU only
    on request. Starts JAX's backend.
    """
    return jax.device_count() == 1 and has_onednn("float32")
