"""Data parallelism: each device of this machine computes its part of every batch, and holds the whole state.

What is jitted is divided as its arguments are (GSPMD, Xu et al. 2021) and computes the same: batch statistics, loss and
gradients are those of the whole batch.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError


def replicate(tree: Any) -> Any:
    """Arrays of any shape, whole on every device."""
    return _place(tree, PartitionSpec())  # type: ignore[no-untyped-call]


def shard_batch(tree: Any) -> Any:
    """Arrays [batch, ...], an equal part of the batch on each device."""
    return _place(tree, PartitionSpec("batch"))  # type: ignore[no-untyped-call]


def check_devices(batch_size: int) -> None:
    """Raises a `UserError` if the devices would not get equal parts of a batch, or are of several machines."""
    if jax.process_count() > 1:
        raise UserError(
            f"this is one of {jax.process_count()} processes that compute together; a run takes the devices of one "
            "machine: start it on a slice that has but one host"
        )
    count = jax.local_device_count()
    if batch_size % count:
        raise UserError(
            f"batch_size is {batch_size}, which cannot be divided among the {count} devices here; give a multiple of "
            f"{count}"
        )


def describe_devices() -> str:
    """What is computed on, such as `cpu` or `4 x NVIDIA L4`."""
    kind, count = jax.local_devices()[0].device_kind, jax.local_device_count()
    return kind if count == 1 else f"{count} x {kind}"


def _place(tree: Any, spec: PartitionSpec) -> Any:
    if jax.local_device_count() == 1:
        return tree  # jit puts it there
    return jax.device_put(tree, NamedSharding(_mesh(), spec))


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("batch",))
