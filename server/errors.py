"""Errors that a user can act on: the operator at start-up, the client of a request afterwards."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

# Starlette's router raises these two with only the reason phrase of the status.
_ROUTER_ERRORS = {
    "Not Found": "There is nothing at this path: POST a picture to /predict, or see /docs for all paths.",
    "Method Not Allowed": "This path does not accept this method: use one that the Allow header lists, or see /docs.",
}

INTERNAL_ERROR = "Internal server error: try again, or report the X-Request-ID of this response to the operator."
"""All that a client learns of an unexpected exception; the log has the traceback."""


class StartError(Exception):
    """An invalid setting or model file. The message is one line that says what is wrong, where, and what to do."""


class PictureError(ValueError):
    """Bytes that do not decode to an acceptable picture. The message is meant for the client."""


def busy(seconds: float) -> HTTPException:
    """Returns the 503 of a request that the server has no room for, with the seconds until it should have."""
    wait = max(1, round(seconds))
    text = f"The server is busy: try again in {wait} second{'s' if wait > 1 else ''}."
    return HTTPException(503, text, headers={"Retry-After": str(wait)})


async def http_error(request: Request, error: Exception) -> Response:
    """Responds to an `HTTPException` in JSON."""
    assert isinstance(error, HTTPException)
    text = _ROUTER_ERRORS.get(error.detail, error.detail)
    return JSONResponse({"error": text}, error.status_code, error.headers)


async def client_disconnected(request: Request, error: Exception) -> Response:
    """Ends a request whose client is gone. Nobody reads this response, but the log and the metrics need a status."""
    return Response(status_code=499)
