"""The workdir of several processes: locked by the first for all of them, seen by all, and copied to a bucket."""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import jax

from jaxcnn.container import is_container
from jaxcnn.disk import wait_for
from jaxcnn.errors import UserError
from jaxcnn.processes import is_leader, lead, share
from jaxcnn.run.bucket import Bucket
from jaxcnn.run.workdir import Workdir
from jaxcnn.terminal import stage

LOCKED_SECONDS = 150.0
"""Time for which a run that a launcher may have started again at once waits for the lock of its last session. NFS keeps
the lock of a machine that is gone for a minute and a half."""


@contextmanager
def locked_by_leader(folder: Workdir) -> Iterator[None]:
    """Locks the folder in the leader, for all processes of the run."""
    with ExitStack() as stack:
        are_several = jax.process_count() > 1
        # A container was started by a launcher, too.
        seconds = LOCKED_SECONDS if are_several or is_container() else 0.0
        lead(lambda: stack.enter_context(folder.locked(seconds=seconds)))
        if are_several:
            _check_shared(folder)
        yield


def _check_shared(folder: Workdir) -> None:
    """Raises a `UserError` if a process does not see the folder of the first: its part of a checkpoint would be lost.

    A name that nobody has looked for yet is not hidden by what a network drive remembers.
    """

    def mark() -> str:
        name = f".shared-{uuid.uuid4().hex}"
        (folder.path / name).touch()
        return name

    path = folder.path / lead(mark)
    try:
        seen = share(wait_for(lambda: path.parent.is_dir() and path.name in os.listdir(path.parent)))
    finally:
        if is_leader():
            path.unlink()
    if not all(seen):
        raise UserError(
            f"process {seen.index(False)} does not see the workdir {folder.path} of process 0; give a --workdir on a "
            "disk that all machines share"
        )


@contextmanager
def copied_to(bucket: str | None, folder: Workdir) -> Iterator[Sequence[Callable[[], None]]]:
    """Fetches the run from a bucket if the folder has none, and sends it there when the context ends without an error.

    Yields:
      What the leader calls after every checkpoint.
    """
    if bucket is None:
        yield ()
        return
    copy = Bucket(bucket)
    lead(partial(copy.restore, folder.path))
    update = partial(copy.update, folder.path)
    yield (update,)
    with stage(f"sending the rest of the run to {bucket}"):
        lead(update)
