"""How a running server ends: on SIGTERM it first tells that it will, and goes on answering meanwhile."""

import asyncio
import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from server.admission import Admission
from server.settings import Settings

# Signals this close together are one: uvicorn's parent looks every half second whether it has got one to pass on.
_SAME_SECONDS = 1

_log = logging.getLogger(__name__)


@contextmanager
def on_sigterm(server: uvicorn.Server, admission: Admission, settings: Settings) -> Iterator[None]:
    """Puts a time of grace before uvicorn's own handling of SIGTERM, until the end of the block.

    uvicorn closes its listener at once: whoever connects before the load balancer has noticed is refused. And it ends
    by the signal; after this it ends with status 0. A second SIGTERM cuts the time short, but not one right after the
    first: where a whole group of processes is told to end, uvicorn's parent passes its own signal on.
    """
    loop = asyncio.get_running_loop()
    begun = math.inf
    if server.config.timeout_graceful_shutdown is None:  # A client that does not read its answer must not hold it up.
        server.config.timeout_graceful_shutdown = settings.read_seconds + settings.deadline_ms // 1000 + 1

    def stop() -> None:
        server.should_exit = True

    def drain() -> None:
        nonlocal begun
        if not admission.is_ready:
            if loop.time() - begun >= _SAME_SECONDS:
                stop()
            return
        begun = loop.time()
        admission.is_ready = False
        _log.info("SIGTERM: not ready any more; the end is in %d seconds", settings.drain_seconds)
        loop.call_later(settings.drain_seconds, stop)

    uvicorns = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(drain))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, uvicorns)
