"""What every request passes first: its request id, the access log and the metrics."""

import os
import re
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import log
from server.metrics import NO_ROUTE
from server.tracing import Stage, Tracing

if TYPE_CHECKING:
    from server.service import Service

_NOT_STARTED = (
    "No model is loaded, because the server was started with `--lifespan off` or the like: the operator must start it"
    " without that option."
)
_REQUEST_ID = re.compile(rb"[\w.:+/=-]{1,128}", re.ASCII)

# How much of a path is logged: 10,000 lines may wait for a reader of the log, and a path may have 8 KB.
_PATH_CHARACTERS = 1000


class RequestLog:
    """ASGI middleware that gives each request an id, then logs and counts the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request, with its id in `scope["state"]["request_id"]` and in the header X-Request-ID."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "service" not in scope.get("state", {}):
            await JSONResponse({"error": _NOT_STARTED}, 503)(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        request_id = scope["state"]["request_id"] = _request_id(scope)
        scope["state"]["stages"] = []
        start = time.monotonic()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                # While draining, announce that the connection ends; uvicorn would just close it.
                if not service.admission.is_ready:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        service.metrics.in_progress.inc()
        try:
            await self.app(scope, receive, send_marked)
        finally:
            service.metrics.in_progress.dec()
            _record(service, scope, request_id, status, start)


def _request_id(scope: Scope) -> str:
    """Returns the client's own id, if it sent one that is safe to log, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return os.urandom(8).hex()


def _record(service: "Service", scope: Scope, request_id: str, status: int, start: float) -> None:
    """Counts, logs and traces a request; a status of 0 means that the client left before the response started."""
    status = status or 499
    route = getattr(scope.get("route"), "path", NO_ROUTE)
    service.metrics.observe_request(scope["method"], route, status, time.monotonic() - start)
    if service.tracing:
        _trace(service.tracing, scope, request_id, route, status, start)
    if service.settings.access_log:
        client = scope["client"]
        log.access(
            service.log,
            request_id=request_id,
            client=client[0] if client else "",
            method=scope["method"],
            path=scope["path"][:_PATH_CHARACTERS],
            status=status,
            start=start,
        )


def _trace(tracing: Tracing, scope: Scope, request_id: str, route: str, status: int, start: float) -> None:
    """Records a finished request with the attributes that OpenTelemetry's conventions name."""
    attributes = {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": status,
        "url.path": scope["path"][:_PATH_CHARACTERS],
        "jaxcnn.request_id": request_id,
    }
    request = Stage(f"{scope['method']} {route}", start, time.monotonic())
    tracing.record(request, scope["state"]["stages"], headers=Headers(scope=scope), attributes=attributes)
