"""Hot reload: serves a new model file without a restart."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from server import files, integrity, model
from server.errors import StartError
from server.service import Service

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
        _log.info("SIGHUP: checking whether the model file has changed")
        wake.set()

    previous = signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(check))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


async def watch(service: Service, wake: asyncio.Event) -> None:
    """Checks the model file; a new one that loads, verifies and runs replaces the old one.

    Args:
      service: the running server, whose settings say how often to check.
      wake: set by others to check now.
    """
    # Start from the signature of the file that was loaded: the file may have been replaced since.
    path, seen, is_served = service.model.path, service.model.signature, True
    seen_beside: list[files.Signature | None] = []
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(service.settings.reload_seconds or None):
                await wake.wait()
        wake.clear()
        found = files.signature_of(path)
        beside = [files.signature_of(name) for name in (integrity.description_of(path), integrity.example_of(path))]
        # A missing file is being replaced, or was removed: either way there is no new model yet.
        if found is None or (found == seen and (is_served or beside == seen_beside)):
            continue
        # Remember an invalid file too, so that it is reported only once, or again when its description has changed.
        seen, seen_beside = found, beside
        is_served = await _load(service)
        service.has_rejected = not is_served
        if is_served:
            seen = service.model.signature


async def _load(service: Service) -> bool:
    """Loads the file, and returns whether it is served now. No failure ends the watch."""
    chosen = service.settings
    try:
        new = await asyncio.to_thread(
            model.load,
            service.model.path,
            sha256=chosen.model.sha256,
            max_batch=chosen.max_batch,
            threads=chosen.threads,
        )
        service.serve(new)
    except Exception as error:
        service.metrics.reloads.labels("failed").inc()
        # A StartError explains itself; anything else needs its traceback.
        unexpected = None if isinstance(error, StartError) else error
        _log.error("new model file rejected, still serving the old one: %s", error, exc_info=unexpected)
        return False
    service.metrics.reloads.labels("succeeded").inc()
    _log.info("serving a new model file: sha256 %s", new.digest)
    return True
