"""A file that keeps other processes out of a folder."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from jaxcnn.errors import UserError


def lock_file(path: Path, *, name: str, busy: str, seconds: float = 0) -> BaseFileLock:
    """Locks a file: the system locks it or, on a network drive without locks, its existence does.

    Args:
      path: its folder is created if it does not exist.
      name: what the folder is, for the error, such as "the workdir runs/a".
      busy: who else may have locked it, for the error, such as "another process is training in runs/a".
      seconds: how long to wait for them.

    Raises:
      UserError: another process has locked it, or it cannot be written or locked.
    """
    lock = FileLock(path, timeout=seconds)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        # Nobody removes the file of a process that was killed on another machine.
        killed = f", or remove {path} if it was killed" if isinstance(lock, SoftFileLock) else ""
        raise UserError(f"{busy}; wait for it{killed}, or give another --workdir") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{name} cannot be written or locked: {reason}; give a --workdir on another disk, or allow this user to "
            "write there"
        ) from error
    return lock
