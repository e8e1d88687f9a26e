"""Serves a new model file without a restart."""

import asyncio
import logging

from server import files, model
from server.errors import StartError
from server.service import Service

_log = logging.getLogger(__name__)


async def watch(service: Service) -> None:
    """Looks at the model file every so often; a new one that loads, verifies and runs takes the place of the old."""
    seen = service.model.signature  # As it was read: it may have been replaced since.
    while True:
        await asyncio.sleep(service.settings.reload_seconds)
        found = files.signature_of(service.settings.model)
        if found is None or found == seen:  # It is being replaced, or is gone: that is no new model.
            continue
        seen = found  # Also if it turns out to be bad: once is enough to say so.
        if await _load(service):
            seen = service.model.signature


async def _load(service: Service) -> bool:
    """Tries the file, and tells whether it is served now. Whatever fails, later files shall have their turn."""
    chosen = service.settings
    try:
        new = await asyncio.to_thread(model.load, chosen.model, max_batch=chosen.max_batch, threads=chosen.threads)
        service.serve(new)
    except Exception as error:
        service.metrics.reloads.labels("failed").inc()
        unforeseen = None if isinstance(error, StartError) else error
        _log.error("the new model file is not used, the old one is still served: %s", error, exc_info=unforeseen)
        return False
    service.metrics.reloads.labels("succeeded").inc()
    _log.info("a new model is served: sha256 %s", new.digest)
    return True
