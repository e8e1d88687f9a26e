"""API keys: which requests need one, and whether a request has it."""

import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from server.service import Service

_UNAUTHORIZED = "The API key is missing or wrong: send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`."


class OpenRoute(Route):
    """A route that never needs an API key; every other path does, including paths without a route."""


def open_paths(routes: Iterable[BaseRoute]) -> frozenset[str]:
    """Returns the path templates, such as `/page/{name}`, that need no API key."""
    return frozenset(route.path for route in routes if isinstance(route, OpenRoute))


class ApiKeys:
    """ASGI middleware that responds 401 to requests without a valid key, if any keys are set."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, unless its path needs a key that it does not have."""
        app = self.app
        if scope["type"] == "http":
            service: Service = scope["state"]["service"]
            keys = service.settings.api_keys
            if keys and not _is_open(scope) and not _has_key(Request(scope), keys):
                app = JSONResponse({"error": _UNAUTHORIZED}, 401, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    """Whether the router would send the request to an open route, whatever its method."""
    return any(isinstance(route, OpenRoute) and route.matches(scope)[0] != Match.NONE for route in scope["app"].routes)


def _has_key(request: Request, keys: tuple[str, ...]) -> bool:
    candidates = [request.headers.get("x-api-key", "")]
    # The Authorization header may instead hold credentials for a proxy in front of this server.
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        candidates.append(token.strip())
    # Compare in constant time, so that the response time reveals nothing about the keys.
    return any(hmac.compare_digest(candidate.encode(), key.encode()) for candidate in candidates for key in keys)
