"""The gradients of kernels on several devices, added in float32 whatever type the layers compute in.

XLA adds the shares of the devices in the type of the layers: in bfloat16, it would round each sum to 8 bits.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

_mesh = jax.make_user_context(default_value=None)  # type: ignore[no-untyped-call]

type Examples = Float[Array, "batch ..."]
type Kernel = Float[Array, "..."]
type Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
type Product = Callable[[Array, Array], Array]
"""A function of examples and a kernel of one type, linear in each of the two."""


def sum_over(mesh: Mesh | None) -> AbstractContextManager[None]:
    """Context in which `apply_kernel` adds the gradients of all devices of a mesh; None: there is one device.

    A training step enters it.
    """
    context: AbstractContextManager[None] = _mesh(mesh)
    return context


def on_several_devices() -> bool:
    """Returns whether a batch is divided among devices, in the context of `sum_over`."""
    return _mesh.value is not None


def apply_kernel(product: Product, x: Examples, kernel: Kernel) -> Examples:
    """Returns `product(x, kernel)`, with the kernel rounded to the type of x.

    In the context of `sum_over`, each device computes the gradient of the kernel for its examples in the type of x. The
    sum over the devices is computed in float32, and has the type of the kernel.

    Args:
      product: what is computed.
      x: divided among the devices along the first axis.
      kernel: the same on all devices.
    """
    mesh = _mesh.value
    if mesh is None or x.dtype.itemsize >= 4:
        return product(x, kernel.astype(x.dtype))
    result: Array = _apply(product, mesh, x, kernel)
    return result


def dot_general(x: Examples, kernel: Kernel, dimensions: Dimensions, *, precision: Any = None) -> Examples:
    """`jax.lax.dot_general` with a kernel, whose gradient is summed as in `apply_kernel`."""
    return apply_kernel(partial(jax.lax.dot_general, dimension_numbers=dimensions, precision=precision), x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apply(product: Product, mesh: Mesh, x: Examples, kernel: Kernel) -> Examples:
    return product(x, kernel.astype(x.dtype))


def _forward(product: Product, mesh: Mesh, x: Examples, kernel: Kernel) -> tuple[Examples, tuple[Examples, Kernel]]:
    return product(x, kernel.astype(x.dtype)), (x, kernel)


def _backward(product: Product, mesh: Mesh, saved: tuple[Examples, Kernel], dy: Examples) -> tuple[Examples, Kernel]:
    x, kernel = saved
    rounded = kernel.astype(x.dtype)
    (dx,) = jax.linear_transpose(lambda x: product(x, rounded), x)(dy)

    def add(x: Examples, dy: Examples) -> Kernel:
        (share,) = jax.linear_transpose(partial(product, x), jax.eval_shape(lambda: rounded))(dy)
        total: Array = jax.lax.psum(share.astype(jnp.float32), mesh.axis_names)  # type: ignore[no-untyped-call]
        return total

    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()  # type: ignore[no-untyped-call]
    # Here XLA must not add the shares by itself.
    gradient = jax.shard_map(add, mesh=mesh, in_specs=(split, split), out_specs=whole, check_vma=False)(x, dy)
    return dx, gradient.astype(kernel.dtype)


_apply.defvjp(_forward, _backward)
