"""Data parallelism: each device of this machine computes its share of every batch, and holds a copy of the state.

Jitted functions are partitioned as their arguments are sharded (GSPMD, Xu et al. 2021). The result is that of one
device: batch statistics, loss and gradients are computed over the whole batch.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError


def replicate(tree: Any) -> Any:
    """Copies arrays of any shape to every device."""
    return _place(tree, PartitionSpec())  # type: ignore[no-untyped-call]


def shard_batch(tree: Any) -> Any:
    """Splits arrays [batch, ...] into equal shares of the batch, one on each device."""
    return _place(tree, PartitionSpec("batch"))  # type: ignore[no-untyped-call]


def check_devices(batch_size: int) -> None:
    """Raises a `UserError` if a batch cannot be split equally among the devices, or they belong to several machines."""
    if jax.process_count() > 1:
        raise UserError(
            f"this is one of {jax.process_count()} processes that compute together; a run takes the devices of one "
            "machine: start it on a slice with a single host"
        )
    count = jax.local_device_count()
    if batch_size % count:
        raise UserError(
            f"batch_size is {batch_size}, which cannot be divided among the {count} devices here; give a multiple of "
            f"{count}"
        )


def describe_devices() -> str:
    """Names the devices of this machine, such as `cpu` or `4 x NVIDIA L4`."""
    kind, count = jax.local_devices()[0].device_kind, jax.local_device_count()
    return kind if count == 1 else f"{count} x {kind}"


def _place(tree: Any, spec: PartitionSpec) -> Any:
    if jax.local_device_count() == 1:
        return tree  # The jitted function transfers it.
    return jax.device_put(tree, NamedSharding(_mesh(), spec))


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("batch",))
