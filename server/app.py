"""The HTTP application: `uvicorn server.app:app`."""

import asyncio
import atexit
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from server import connection, drain, errors, fetch, log, memory, picture, reload, service, settings, startup, tracing
from server.middleware.auth import ApiKeys
from server.middleware.cors import Cors
from server.middleware.errors import OneLineStartErrors, ServerErrors
from server.middleware.request_log import RequestLog
from server.protocols.open_inference import server_version
from server.routes import ROUTES
from server.service import Service

# A worker thread that has run the model waits for the interpreter while the event loop has it. By default that is up to
# 5 ms, in which a core idles.
_SWITCH_SECONDS = 1e-4


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Service]]:
    """Loads the models before the first request, and closes the workers after the last response."""
    # Load everything; a StartError here ends the process with one line.
    memory.tighten()
    sys.setswitchinterval(_SWITCH_SECONDS)
    server = connection.uvicorn_server()
    with startup.stop_at_signal(server), startup.spare_others(server):
        chosen = settings.from_environment(os.environ)
        connection.install(server, chosen)
        paths = {name: fetch.fetch(source, chosen.cache) for name, source in chosen.model.items()}
        models = [service.load(name, path, chosen) for name, path in paths.items()]
        # The end of the process calls it last, after the log has been written.
        atexit.register(reload.exit_while_loading)
        running = Service(chosen, models, log.start(), tracing.start(os.environ, server_version()))
    # Serve.
    wake = asyncio.Event()
    watcher = asyncio.create_task(reload.watch(running, wake))
    try:
        with (
            picture.warnings_ignored(),
            reload.on_sighup(wake),
            drain.on_sigterm(server, running.admission, chosen),
        ):
            yield {"service": running}
    finally:
        # Shut down.
        watcher.cancel()
        running.close()


def create_app() -> Starlette:
    """Builds the application. It reads its settings from the environment when it starts."""
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(layer) for layer in (OneLineStartErrors, RequestLog, Cors, ServerErrors, ApiKeys)],
        exception_handlers={HTTPException: errors.http_error, ClientDisconnect: errors.client_disconnected},
        lifespan=lifespan,
    )
    # POST /predict/ is a 404 like any unknown path, not a redirect to whatever the Host header names.
    app.router.redirect_slashes = False
    return app


# uvicorn imports this module before it creates the event loop.
log.open_closed_streams()
app = create_app()
