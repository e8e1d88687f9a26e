"""What can go wrong, in words for whoever can mend it: the operator at start-up, the client afterwards."""

import logging
import sys

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The router raises these two with the bare phrase of the status.
_ROUTER_ERRORS = {
    "Not Found": "There is nothing at this path: POST a picture to /predict; /docs lists all there is.",
    "Method Not Allowed": "This path does not take this method: see the Allow header, or /docs.",
}

_log = logging.getLogger(__name__)

GENERIC = "The server failed on this request: try again, or ask its operator."
"""All that a client is told of an unforeseen exception; the log has the rest."""


class StartError(Exception):
    """A wrong setting or model file. The message is one line that says what is wrong, where, and what to do."""


class PictureError(ValueError):
    """Bytes that do not decode to an acceptable picture. The message is for the client."""


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


class Defects:
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


def busy(seconds: float) -> HTTPException:
    """The answer to a request that there is no room for, with the time until there should be."""
    wait = max(1, round(seconds))
    text = f"The server is full: try again in {wait} second{'s' if wait > 1 else ''}."
    return HTTPException(503, text, headers={"Retry-After": str(wait)})


async def refused(request: Request, error: Exception) -> Response:
    """Answers an `HTTPException` as JSON."""
    assert isinstance(error, HTTPException)
    text = _ROUTER_ERRORS.get(error.detail, error.detail)
    return JSONResponse({"error": text}, error.status_code, error.headers)


async def disconnected(request: Request, error: Exception) -> Response:
    """Ends a request whose client went away: nobody is left to read the answer."""
    return Response(status_code=499)
