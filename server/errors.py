"""What can go wrong, in words for whoever can mend it: the operator at start-up, the client afterwards."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

# The router raises these two with the bare phrase of the status.
_ROUTER_ERRORS = {
    "Not Found": "There is nothing at this path: POST a picture to /predict; /docs lists all there is.",
    "Method Not Allowed": "This path does not take this method: see the Allow header, or /docs.",
}

GENERIC = "The server failed on this request: try again, or ask its operator."
"""All that a client is told of an unforeseen exception; the log has the rest."""


class StartError(Exception):
    """A wrong setting or model file. The message is one line that says what is wrong, where, and what to do."""


class PictureError(ValueError):
    """Bytes that do not decode to an acceptable picture. The message is for the client."""


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
