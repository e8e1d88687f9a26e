"""CORS: which web sites' pages may call the server from a browser."""

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from server.service import Service


class Cors:
    """ASGI middleware that allows the origins of the settings, if there are any.

    The settings are known only once the application has started, so Starlette's middleware is built on first use.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._by_origins: dict[tuple[str, ...], CORSMiddleware] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds CORS headers to responses, and responds to preflight requests."""
        app = self.app
        if scope["type"] == "http":
            service: Service = scope["state"]["service"]
            if origins := service.settings.cors_origins:
                app = self._by_origins.get(origins) or self._allow(origins)
        await app(scope, receive, send)

    def _allow(self, origins: tuple[str, ...]) -> CORSMiddleware:
        self._by_origins[origins] = _JsonCorsMiddleware(
            self.app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "Authorization",
                "Content-Encoding",
                "Content-Type",
                "Inference-Header-Content-Length",
                "traceparent",
                "tracestate",
                "X-API-Key",
                "X-Request-ID",
            ],
            expose_headers=["Inference-Header-Content-Length", "Retry-After", "X-Request-ID"],
        )
        return self._by_origins[origins]


class _JsonCorsMiddleware(CORSMiddleware):
    """Refuses preflight requests in JSON, like every other error; Starlette responds in plain text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        plain = super().preflight_response(request_headers)
        if plain.status_code == 200:
            return plain
        reason = bytes(plain.body).decode()
        remedy = "pages of this web site may not send this request; the operator can allow it by JAXCNN_CORS_ORIGINS"
        headers = {name: value for name, value in plain.headers.items() if not name.startswith("content-")}
        return JSONResponse({"error": f"{reason}: {remedy}."}, plain.status_code, headers)
