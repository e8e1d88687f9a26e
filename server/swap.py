"""Serves a new model file without a restart."""

import asyncio
import logging
from pathlib import Path

from server import model
from server.errors import StartError
from server.service import Service

_log = logging.getLogger(__name__)


async def watch(service: Service) -> None:
    """Looks at the model file every so often; a new one that loads, verifies and runs takes the place of the old."""
    chosen = service.settings
    path = chosen.model
    served = _signature(path)
    while True:
        await asyncio.sleep(chosen.reload_seconds)
        found = _signature(path)
        if found is None or found == served:
            continue
        served = found  # Also if it turns out to be bad: once is enough to say so.
        try:
            new = await asyncio.to_thread(model.load, path, max_batch=chosen.max_batch, threads=chosen.threads)
        except StartError as error:
            service.metrics.reloads.labels("failed").inc()
            _log.error("the new model file is not used, the old one is still served: %s", error)
        else:
            service.serve(new)
            service.metrics.reloads.labels("succeeded").inc()
            _log.info("a new model is served: sha256 %s", new.digest)


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:  # It is being replaced, or is gone: that is no new model.
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
