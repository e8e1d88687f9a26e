"""Graceful shutdown: on SIGTERM the server first reports that it is not ready, and serves on for a while."""

import asyncio
import logging
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn

from server import listening
from server.admission import Admission
from server.settings import Settings

# A second signal within this time counts as the first: uvicorn's parent process checks every half second whether it
# has received a signal to pass on.
_SAME_SECONDS = 1

# How long the listener stays open once it takes no further clients: whoever has connected before is answered.
_LAST_SECONDS = 0.1

_log = logging.getLogger(__name__)


@contextmanager
def on_sigterm(server: uvicorn.Server, admission: Admission, settings: Settings) -> Iterator[None]:
    """Delays uvicorn's own handling of SIGTERM by a grace period, until the end of the block.

    uvicorn alone closes its listener at once, which refuses clients that connect before the load balancer has noticed,
    and ends by the signal. With this the process ends with status 0. A second SIGTERM ends the grace period early,
    unless it follows the first at once: when a whole process group is terminated, uvicorn's parent process passes its
    own signal on as well.
    """
    loop = asyncio.get_running_loop()
    begun = math.inf
    # A client that does not read its response must not hold up the shutdown.
    if server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = settings.read_seconds + settings.deadline_ms // 1000 + 1

    def stop() -> None:
        # Before anything that may fail: the process has to end.
        loop.call_later(_LAST_SECONDS, close)
        # Connections wait in a socket that systemd or another program has passed, and keeps for the next process.
        if server.config.fd is None and os.environ.get("LISTEN_PID") != str(os.getpid()):
            with suppress(OSError):
                listening.pause(server)

    def close() -> None:
        server.should_exit = True

    def drain() -> None:
        nonlocal begun
        if not admission.is_ready:
            if loop.time() - begun >= _SAME_SECONDS:
                stop()
            return
        begun = loop.time()
        admission.is_ready = False
        _log.info("SIGTERM: not ready any more, shutting down in %d seconds", settings.drain_seconds)
        loop.call_later(settings.drain_seconds, stop)

    # Python runs signal handlers between any two instructions; let the event loop do the work.
    previous = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(drain))
    watcher = asyncio.create_task(_keep_listening(server, admission))
    try:
        yield
    finally:
        watcher.cancel()
        signal.signal(signal.SIGTERM, previous)


async def _keep_listening(server: uvicorn.Server, admission: Admission) -> None:
    """Lets clients connect again, each tenth of a second, after another worker has shut down alone."""
    while True:
        await asyncio.sleep(_LAST_SECONDS)
        if admission.is_ready:
            # What fails now may succeed the next time.
            with suppress(OSError):
                listening.resume(server)
