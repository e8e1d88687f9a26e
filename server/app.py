"""The HTTP application: `uvicorn server.app:app`."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from server import errors, model, settings
from server.service import Service


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Service]]:
    """Opens the model before the first request, and finishes the last before the end."""
    chosen = settings.from_environment(os.environ)
    service = Service(chosen, model.load(chosen.model))
    try:
        yield {"service": service}
    finally:
        service.close()


async def predict(request: Request) -> JSONResponse:
    """`POST /predict`: names what a picture shows."""
    service: Service = request.state.service
    top_k = _top_k(request, classes=len(service.model.names))
    with service.admission():
        body = await _read(request, service.settings)
        answer = await service.predict(request.headers.get("content-type", ""), body, top_k=top_k)
    return JSONResponse(answer)


async def healthz(request: Request) -> JSONResponse:
    """`GET /healthz`: the process answers."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> JSONResponse:
    """`GET /readyz`: the model is loaded; until it is, uvicorn takes no connection."""
    return JSONResponse({"status": "ready"})


def create_app() -> Starlette:
    """Builds the application. It reads its settings from the environment when it starts."""
    app = Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
        middleware=[Middleware(errors.OneLineStartErrors)],
        exception_handlers={
            HTTPException: errors.refused,
            ClientDisconnect: errors.disconnected,
            Exception: errors.failed,
        },
        lifespan=lifespan,
    )
    # A POST to /predict/ is a 404 like any other, not a redirect to wherever the Host header points.
    app.router.redirect_slashes = False
    return app


def _top_k(request: Request, *, classes: int) -> int:
    """How many classes the client asks for; three, as the original system gave, where it does not say."""
    text = request.query_params.get("top_k")
    if text is None:
        return min(3, classes)
    if re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= classes:
        return int(text)
    raise HTTPException(400, f"`top_k` has to be a whole number from 1 to {classes}, the number of classes.")


async def _read(request: Request, limits: settings.Settings) -> bytes:
    """Reads the body, and stops as soon as it is known to be too large."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "The body has a Content-Encoding: send it uncompressed.")
    too_large = HTTPException(413, f"The body is too large: send at most {limits.max_body_bytes} bytes.")
    if int(request.headers.get("content-length", "0")) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError:
        raise HTTPException(
            408,
            f"The body did not arrive within {limits.read_seconds} seconds: send it faster.",
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


app = create_app()
