"""The start of a process: a signal ends it at once, and a worker that cannot start leaves the others alone."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import uvicorn

# How long a worker that cannot start waits before it lets uvicorn start the next one.
_RETRY_SECONDS = 5

# uvicorn's logger writes to standard error until the server's own log begins.
_log = logging.getLogger("uvicorn.error")


class _StoppedError(BaseException):
    """Ends the start."""


@contextmanager
def stop_at_signal(server: uvicorn.Server) -> Iterator[None]:
    """Ends the process with status 0 on SIGTERM or SIGINT in the block, once what is open has been closed.

    uvicorn would first let the start complete, and a model may take ten minutes to download.
    """
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> NoReturn:
        # A second signal must not interrupt the closing of files.
        for number in previous:
            signal.signal(number, signal.SIG_IGN)
        raise _StoppedError

    try:
        for number in previous:
            signal.signal(number, stop)
        # The signal may have come before.
        if server.should_exit:
            raise _StoppedError
        yield
    except _StoppedError:
        _log.info("Asked to end before the models were loaded.")
        # Starlette and uvicorn would report any exception as a failure.
        os._exit(0)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def spare_others(server: uvicorn.Server) -> Iterator[None]:
    """Ends a worker that cannot replace another one in such a way that uvicorn starts a new one later.

    uvicorn ends all workers if one ends with the status of a failed start, even if the others serve. The first workers
    do that, so that an invalid setting or model file is noticed.
    """
    try:
        yield
    except Exception as error:
        if not _is_replacement(server.config.workers):
            raise
        _log.error("this worker cannot replace one that has ended; the next try is in %d s: %s", _RETRY_SECONDS, error)
        time.sleep(_RETRY_SECONDS)
        os._exit(1)


def _is_replacement(workers: int) -> bool:
    """Whether this process is a worker beyond the first ones, by its name: `SpawnProcess-3` is the third."""
    number = multiprocessing.current_process().name.rpartition("-")[2]
    return workers > 1 and number.isdigit() and int(number) > workers
