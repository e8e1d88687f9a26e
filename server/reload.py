"""Hot reload: serves new model files without a restart."""

import asyncio
import concurrent.futures
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from server import files, integrity, service
from server.errors import StartError
from server.service import ServedModel, Service

# When a rejected file is tried again: after a minute, then twice as long after each further rejection, up to an hour.
_RETRY_SECONDS = 60
_MAX_RETRY_SECONDS = 3600

# The name of the thread that looks at a model file or loads it.
_LOADER = "loader"

_log = logging.getLogger(__name__)


@contextmanager
def on_sighup(wake: asyncio.Event) -> Iterator[None]:
    """Sets the event on each SIGHUP until the end of the block; without it, the signal would end the process.

    A SIGHUP that is ignored, as `nohup` arranges it, stays ignored.
    """
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        yield
        return
    loop = asyncio.get_running_loop()

    def check() -> None:
        _log.info("SIGHUP: checking whether the model files have changed")
        wake.set()

    previous = signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(check))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


async def watch(running: Service, wake: asyncio.Event) -> None:
    """Checks the model files, one after the other; a new one that loads, verifies and runs replaces the old one.

    Args:
      running: the running server, whose settings say how often to check.
      wake: set by others to check now, and to try rejected files again.
    """
    watched = [_Watched(served) for served in running.models.values()]
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(running.settings.reload_seconds or None):
                await wake.wait()
        retry = wake.is_set()
        wake.clear()
        for file in watched:
            if await _is_due(file, retry=retry):
                file.note(is_served=await _load(running, file.served))


class _Watched:
    """A model file, and what was last seen of it.

    Attributes:
      served: the model.
      is_served: whether the file as last seen is what is served.
    """

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.is_served = True
        self._path = served.model.path
        # Start from the signature of the file that was loaded: the file may have been replaced since.
        self._seen: files.Signature | None = served.model.signature
        self._seen_beside: list[files.Signature | None] = []
        self._retry_seconds = 0
        self._retry_at = 0.0

    def is_due(self, *, retry: bool) -> bool:
        """Whether to load the file: once if it is new, again if it was rejected and its description has changed.

        A rejected file is due again after a while, as the reason may have passed, such as a lack of memory.

        Args:
          retry: whether a rejected file is due now.
        """
        if self.is_served:
            self._seen = self.served.model.signature
        found = files.signature_of(self._path)
        described = integrity.description_of(self._path), integrity.example_of(self._path)
        beside = [files.signature_of(path) for path in described]
        # A missing file is being replaced, or was removed: either way there is no new model yet.
        if found is None:
            return False
        is_same = found == self._seen and (self.is_served or beside == self._seen_beside)
        if is_same and (self.is_served or not (retry or time.monotonic() >= self._retry_at)):
            return False
        if not is_same:
            self._retry_seconds = 0
        self._seen, self._seen_beside = found, beside
        return True

    def note(self, *, is_served: bool) -> None:
        """Records whether the file was served when it was loaded, and if not, when it is due again."""
        self.is_served = is_served
        self._retry_seconds = min(2 * self._retry_seconds or _RETRY_SECONDS, _MAX_RETRY_SECONDS)
        self._retry_at = time.monotonic() + self._retry_seconds


async def _is_due(file: _Watched, *, retry: bool) -> bool:
    """Looks at a file in a thread: a network file system that does not respond must not stop the event loop."""
    try:
        return await _in_thread(partial(file.is_due, retry=retry))
    except RuntimeError:
        # The system starts no thread now; the next check may have one.
        return False


async def _load(running: Service, served: ServedModel) -> bool:
    """Loads a file, and returns whether it is served now. No failure ends the watch."""
    try:
        new = await _in_thread(partial(service.load, served.name, served.model.path, running.settings))
        running.serve(new)
    except Exception as error:
        served.metrics.count_reload("failed")
        served.has_rejected = True
        # A StartError explains itself; anything else needs its traceback.
        unexpected = None if isinstance(error, StartError) else error
        _log.error("new model file rejected, still serving the old one: %s", error, exc_info=unexpected)
        return False
    served.metrics.count_reload("succeeded")
    served.has_rejected = False
    _log.info("serving a new file of %s: sha256 %s", served.name, new.digest)
    return True


async def _in_thread[T](function: Callable[[], T]) -> T:
    """Runs a function in a thread for which the end of the process does not wait, unlike `asyncio.to_thread`."""
    future = concurrent.futures.Future[T]()
    # From now on, a task that is cancelled does not cancel the future.
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=_LOADER, daemon=True).start()
    return await asyncio.wrap_future(future)


def exit_while_loading() -> None:
    """Ends the process at once, with status 0, if a model is being loaded or looked at. Call it last.

    A thread that comes back from onnxruntime to an interpreter that has ended aborts the process.
    """
    if any(thread.name == _LOADER for thread in threading.enumerate()):
        os._exit(0)
