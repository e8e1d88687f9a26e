"""Errors of the server itself: a failed start is reported in one line, an unexpected exception becomes a 500."""

import logging
import sys

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import INTERNAL_ERROR, StartError

_log = logging.getLogger(__name__)


class OneLineStartErrors:
    """ASGI middleware that reports a `StartError` by its message alone.

    Starlette reports a failed start-up as a whole traceback. uvicorn logs the report, then exits with status 3.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Shortens the report of a failed start-up, and passes everything else on unchanged."""

        async def send_one_line(message: Message) -> None:
            # Starlette sends its report from within the `except` block, so the exception is the current one.
            error = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(error, StartError):
                message = {**message, "message": str(error)}
            await send(message)

        await self.app(scope, receive, send_one_line if scope["type"] == "lifespan" else send)


class ServerErrors:
    """ASGI middleware that logs unhandled exceptions and responds 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; no exception leaves this method."""
        has_started = False

        async def send_noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send_noted)
        except Exception:
            _log.exception("unhandled exception", extra={"request_id": scope["state"]["request_id"]})
            # Once a response has started, it can only be cut short.
            if not has_started:
                await JSONResponse({"error": INTERNAL_ERROR}, 500)(scope, receive, send)
