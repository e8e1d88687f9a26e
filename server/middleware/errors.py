"""Errors of the server itself: a failed start in one line, an unforeseen exception as 500."""

import logging
import sys

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import GENERIC, StartError

_log = logging.getLogger(__name__)


class OneLineStartErrors:
    """ASGI middleware that has a `StartError` reported by its message alone.

    Starlette reports a failed start-up with the whole traceback; the server (uvicorn) logs what is reported,
    then exits with a non-zero status.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything through but the report of a failed start-up."""

        async def send_one_line(message: Message) -> None:
            error = sys.exception()  # Starlette sends its report while it handles the exception.
            if message["type"] == "lifespan.startup.failed" and isinstance(error, StartError):
                message = {**message, "message": str(error)}
            await send(message)

        await self.app(scope, receive, send_one_line if scope["type"] == "lifespan" else send)


class ServerErrors:
    """ASGI middleware that answers 500 to what is nobody's fault but the server's, and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; nothing that it raises gets further."""
        is_answered = False

        async def send_noted(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send_noted)
        except Exception:
            _log.exception("the server failed on a request", extra={"request_id": scope["state"]["request_id"]})
            if not is_answered:
                await JSONResponse({"error": GENERIC}, 500)(scope, receive, send)
