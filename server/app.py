"""The HTTP application: `uvicorn server.app:app`."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route

from server import connection, demo, drain, errors, info, log, memory, model, predictions, reload, settings
from server.middleware.auth import ApiKeys
from server.middleware.cors import Cors
from server.middleware.errors import OneLineStartErrors, ServerErrors
from server.middleware.request_log import RequestLog
from server.service import Service


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Service]]:
    """Opens the model before the first request, and finishes the last before the end."""
    memory.tighten()
    chosen = settings.from_environment(os.environ)
    loaded = model.load(chosen.model, max_batch=chosen.max_batch, threads=chosen.threads)
    service = Service(chosen, loaded, log.start())
    watcher = asyncio.create_task(reload.watch(service)) if chosen.reload_seconds else None
    try:
        with _hosted(service):
            yield {"service": service}
    finally:
        if watcher is not None:
            watcher.cancel()
        service.workers.close()


@contextmanager
def _hosted(service: Service) -> Iterator[None]:
    """Mends what uvicorn leaves open; another server has ways of its own."""
    server = connection.uvicorn_server()
    if server is None:
        yield
        return
    connection.guard(server, service.settings)
    with drain.on_sigterm(server, service.admission, service.settings):
        yield


def _routes() -> list[BaseRoute]:
    """All there is, the busiest first: they are tried in order."""
    routes: list[BaseRoute] = [
        Route("/predict", predictions.predict, methods=["POST"]),
        Route("/invocations", predictions.predict, methods=["POST"]),
        Route("/healthz", info.healthz),
        Route("/readyz", info.readyz),
        Route("/ping", info.ping),
        Route("/metrics", info.prometheus),
        Route("/v2", info.v2_server),
        Route("/v2/health/live", info.v2_live),
        Route("/v2/health/ready", info.v2_ready),
    ]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(f"{path}/infer", predictions.infer, methods=["POST"]),
            Route(f"{path}/ready", info.v2_model_ready),
            Route(path, info.v2_model),
        ]
    return [
        *routes,
        Route("/openapi.json", info.openapi_document),
        Route("/docs", info.documentation),
        *demo.ROUTES,
    ]


def create_app() -> Starlette:
    """Builds the application. It reads its settings from the environment when it starts."""
    app = Starlette(
        routes=_routes(),
        middleware=[Middleware(each) for each in (OneLineStartErrors, RequestLog, Cors, ServerErrors, ApiKeys)],
        exception_handlers={HTTPException: errors.refused, ClientDisconnect: errors.disconnected},
        lifespan=lifespan,
    )
    # A POST to /predict/ is a 404 like any other, not a redirect to wherever the Host header points.
    app.router.redirect_slashes = False
    return app


app = create_app()
