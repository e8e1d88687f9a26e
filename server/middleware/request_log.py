"""What every request passes, whatever it asks: its id, the access log and the counters."""

import os
import re
import time
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import log
from server.metrics import NO_ROUTE

if TYPE_CHECKING:
    from server.service import Service

_NOT_STARTED = (
    "The server has no model, for it was started with `--lifespan off` or the like: its operator has to leave that out."
)
_REQUEST_ID = re.compile(rb"[\w.:+/=-]{1,128}", re.ASCII)


class RequestLog:
    """ASGI middleware around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gives a request its id, for what is inside too, and notes how it ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "service" not in scope.get("state", {}):
            await JSONResponse({"error": _NOT_STARTED}, 503)(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        request_id = scope["state"]["request_id"] = _request_id(scope)
        start = time.monotonic()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if not service.admission.is_ready:  # Before uvicorn closes the connection without a word.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        service.metrics.in_progress.inc()
        try:
            await self.app(scope, receive, send_marked)
        finally:
            service.metrics.in_progress.dec()
            _note(service, scope, request_id, status, start)


def _request_id(scope: Scope) -> str:
    """The client's own id, if it sent one that is fit for a log, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return os.urandom(8).hex()


def _note(service: "Service", scope: Scope, request_id: str, status: int, start: float) -> None:
    """Counts and logs; a status of 0 tells that the client was gone before it was answered."""
    status = status or 499
    route = getattr(scope.get("route"), "path", NO_ROUTE)
    service.metrics.observe_request(scope["method"], route, status, time.monotonic() - start)
    if service.settings.access_log:
        client = scope["client"]
        log.access(
            service.log,
            request_id=request_id,
            client=client[0] if client else "",
            method=scope["method"],
            path=scope["path"],
            status=status,
            start=start,
        )
