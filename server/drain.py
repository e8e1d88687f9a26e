"""How a running server ends: on SIGTERM it first tells that it will, and goes on answering meanwhile."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from server.admission import Admission
from server.settings import Settings

_log = logging.getLogger(__name__)


@contextmanager
def on_sigterm(server: uvicorn.Server, admission: Admission, settings: Settings) -> Iterator[None]:
    """Puts a time of grace before uvicorn's own handling of SIGTERM, until the end of the block.

    uvicorn closes its listener at once: whoever connects before the load balancer has noticed is refused. And it ends
    by the signal; after this it ends with status 0. A second SIGTERM cuts the time short.
    """
    loop = asyncio.get_running_loop()
    if server.config.timeout_graceful_shutdown is None:  # A client that does not read its answer must not hold it up.
        server.config.timeout_graceful_shutdown = settings.read_seconds + settings.deadline_ms // 1000 + 1

    def stop() -> None:
        server.should_exit = True

    def drain() -> None:
        if not admission.is_ready:
            stop()
            return
        admission.is_ready = False
        _log.info("SIGTERM: not ready any more; the end is in %d seconds", settings.drain_seconds)
        loop.call_later(settings.drain_seconds, stop)

    uvicorns = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(drain))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, uvicorns)
