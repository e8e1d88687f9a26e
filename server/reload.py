"""Hot reload: serves a new model file without a restart."""

import asyncio
import logging

from server import files, model
from server.errors import StartError
from server.service import Service

_log = logging.getLogger(__name__)


async def watch(service: Service) -> None:
    """Checks the model file every `reload_seconds`; a new one that loads, verifies and runs replaces the old one."""
    # Start from the signature of the file that was loaded: the file may have been replaced since.
    path, seen, is_served, seen_beside = service.model.path, service.model.signature, True, None
    while True:
        await asyncio.sleep(service.settings.reload_seconds)
        found, beside = files.signature_of(path), files.signature_of(model.description_of(path))
        # A missing file is being replaced, or was removed: either way there is no new model yet.
        if found is None or (found == seen and (is_served or beside == seen_beside)):
            continue
        # Remember an invalid file too, so that it is reported only once, or again when its description has changed.
        seen, seen_beside = found, beside
        is_served = await _load(service)
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
