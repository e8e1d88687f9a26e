"""Several devices: the mesh over all of them, and how a run's state and batches are laid out on it.

The devices may belong to several processes on several machines; `jaxcnn.processes` says how these find each other. Each
device computes its share of every batch. Jitted functions are partitioned as their arguments are sharded (GSPMD, Xu et
al. 2021). The result is that of one device but for rounding: batch statistics, loss and gradients are computed over the
whole batch.

On one device nothing is placed: jitted functions transfer their arguments.
"""

import functools
import math
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Shaped

from jaxcnn.errors import UserError

AXES = ("data", "fsdp")
"""Axes of the mesh. Batches are split along both, the state along the second."""
SMALLEST = 2**10
"""Numbers in the smallest array that is sharded; gathering smaller ones costs more time than their copies memory."""


@functools.cache
def make_mesh(fsdp: int = 1) -> Mesh | None:
    """Returns the mesh (data, fsdp) of all devices of all processes; None if there is only one device.

    Args:
      fsdp: devices among which one copy of the state is divided; it divides the number of devices.
    """
    count = jax.device_count()
    if count == 1:
        return None
    # XLA lays out what lies between the arguments and the results.
    return jax.make_mesh((count // fsdp, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def check_devices(batch_size: int, *, fsdp: int = 1) -> None:
    """Raises a `UserError` if a batch or the state cannot be divided equally among all devices.

    All processes need the same number of devices: from the number of its rows, each knows the size of the whole batch.
    """
    owned = Counter(device.process_index for device in jax.devices())
    if len({*owned.values()}) > 1:
        raise UserError(
            f"the processes of this run have {', '.join(str(owned[process]) for process in sorted(owned))} devices; "
            "give all of them the same number, such as with CUDA_VISIBLE_DEVICES"
        )
    count = jax.device_count()
    if batch_size % count:
        raise UserError(
            f"batch_size is {batch_size}, which cannot be divided among the {count} devices here; give a multiple of "
            f"{count}"
        )
    if count % fsdp:
        raise UserError(f"parallel.fsdp is {fsdp}, which does not divide the {count} devices here")


def describe_devices() -> str:
    """Names all devices, such as `cpu`, `4 x NVIDIA L4` or `16 x TPU v5e in 4 processes`."""
    kind, count, processes = jax.devices()[0].device_kind, jax.device_count(), jax.process_count()
    devices = kind if count == 1 else f"{count} x {kind}"
    return devices if processes == 1 else f"{devices} in {processes} processes"


def place_state(state: Any, mesh: Mesh | None) -> Any:
    """Lays a state out on the mesh; its arrays are the same in every process, or are already on the mesh.

    Large arrays are divided along the axis `fsdp` of the mesh (Rajbhandari et al. 2020); the others are copied to every
    device. Without a mesh, all are on the only device, fixed to it as restored ones are: for arrays that are free to
    move, JAX compiles another program, and a resumed run would not find the one that the first start has kept.
    """
    if mesh is None:
        return jax.device_put(state, jax.local_devices()[0])

    def place(leaf: Any) -> jax.Array:
        sharding = state_sharding(leaf, mesh)
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place, state)


def constrain_state(state: Any, mesh: Mesh | None) -> Any:
    """Inside of a jitted function, fixes the layout of a state, or of arrays of the same shapes, to `place_state`'s."""
    if mesh is None:
        return state
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, state_sharding(leaf, mesh)),  # type: ignore[no-untyped-call]
        state,
    )


def state_sharding(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Returns how an array of the state is divided: along its largest axis that `fsdp` divides, the last on a tie."""
    shape, fsdp = np.shape(leaf), mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    spec: list[str | None] = [None] * len(shape)
    if fsdp > 1 and axes and math.prod(shape) >= SMALLEST:
        spec[max(axes, key=lambda axis: (shape[axis], axis))] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]


def local_rows(batch_size: int, mesh: Mesh | None) -> Int[np.ndarray, " rows"]:
    """Returns the positions in a batch that the devices of this process compute, in rising order."""
    if mesh is None:
        return np.arange(batch_size)
    parts = _batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def shard_batch(rows: Shaped[np.ndarray, "rows ..."] | Shaped[jax.Array, "rows ..."], mesh: Mesh | None) -> Any:
    """Makes a batch over all devices from the rows of this process, as `local_rows` orders them; placed ones stay."""
    if mesh is None or isinstance(rows, jax.Array):
        return rows
    size = len(rows) * jax.process_count()
    first = {int(row): i for i, row in enumerate(local_rows(size, mesh))}

    def part(index: Any) -> Any:
        start, stop, _ = index[0].indices(size)
        return rows[first[start] : first[start] + stop - start]

    return jax.make_array_from_callback((size, *rows.shape[1:]), _batch_sharding(mesh), part)


def place_batch[T](batch: T, mesh: Mesh | None) -> T:
    """Starts the transfer of the arrays of a batch to the devices, so that a later step finds them there."""
    placed: T = jax.tree.map(lambda rows: jax.device_put(rows) if mesh is None else shard_batch(rows, mesh), batch)
    return placed


def constrain_batch(rows: Shaped[jax.Array, "batch ..."], mesh: Mesh | None) -> Shaped[jax.Array, "batch ..."]:
    """Inside of a jitted function, fixes the layout of a batch to `shard_batch`'s, as `fetch_rows` expects it.

    Where a divided kernel is larger than the batch, XLA would divide the result as the kernel is.
    """
    if mesh is None:
        return rows
    constrained: jax.Array = jax.lax.with_sharding_constraint(rows, _batch_sharding(mesh))  # type: ignore[no-untyped-call]
    return constrained


def fetch_rows(batch: Shaped[jax.Array, "batch ..."]) -> Shaped[np.ndarray, "rows ..."]:
    """Returns the rows of a batch that this process has computed, as `local_rows` orders them."""
    if batch.is_fully_addressable or batch.is_fully_replicated:
        return np.asarray(batch)
    parts = {part.index[0].start or 0: part.data for part in batch.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def fetch_state(tree: Any) -> Any:
    """Returns arrays of NumPy; every process calls it, and has all of every array then."""
    return jax.tree.map(
        lambda leaf: (
            np.asarray(leaf)
            if leaf.is_fully_addressable or leaf.is_fully_replicated
            else multihost_utils.process_allgather(leaf, tiled=True)
        ),
        tree,
    )


def gather_rows(
    positions: Int[np.ndarray, " rows"], values: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "all columns"]:
    """Joins the rows of all processes, each of which calls it.

    Args:
      positions: where each row belongs.
      values: the rows, as many as there are positions.

    Returns:
      The rows of all processes in the order of their positions.
    """
    if jax.process_count() == 1:
        return values
    # The arrays of all processes must have one shape, and JAX would round them: they travel as bytes.
    longest = int(multihost_utils.process_allgather(np.int32(len(values))).max())
    table = np.full((longest, 1 + values.shape[1]), -1, np.float64)
    table[: len(values), 0], table[: len(values), 1:] = positions, values
    found = np.ascontiguousarray(multihost_utils.process_allgather(table.view(np.int32), tiled=True)).view(np.float64)
    found = found[found[:, 0] >= 0]
    return found[np.argsort(found[:, 0]), 1:].astype(values.dtype)


def same_everywhere(tree: Any) -> Any:
    """Returns arrays as the first process has them, in every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def _batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(AXES))  # type: ignore[no-untyped-call]
