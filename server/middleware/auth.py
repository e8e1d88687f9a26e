"""API keys: who may call the server."""

import hmac
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from server.service import Service

_OPEN = {"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"}
_OPEN_FOLDERS = ("/page/", "/onnxruntime-web/")


class ApiKeys:
    """ASGI middleware that lets requests through which come with one of the keys, if there are any."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 to a request for anything but health, the page and the documentation without a key."""
        app = self.app
        if scope["type"] == "http":
            service: Service = scope["state"]["service"]
            keys = service.settings.api_keys
            if keys and not _is_open(scope) and not _has_key(Request(scope), keys):
                text = "This needs an API key: send the header `Authorization: Bearer KEY` or `X-API-Key: KEY`."
                app = JSONResponse({"error": text}, 401, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))  # ASGI has the one in the other.
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)


def _has_key(request: Request, keys: tuple[str, ...]) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = [request.headers.get("x-api-key", "")]
    if scheme.lower() == "bearer":  # May be meant for a proxy before this server.
        given.append(token.strip())
    # In constant time: how long it takes tells nothing of how much was right.
    return any(hmac.compare_digest(each.encode(), key.encode()) for each in given for key in keys)
