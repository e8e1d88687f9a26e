"""CORS: the web sites whose pages may call the server."""

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from server.service import Service


class Cors:
    """ASGI middleware that answers browsers about other web sites, if any are allowed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._allowing: dict[tuple[str, ...], CORSMiddleware] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds the headers to answers, and answers preflight requests."""
        app = self.app
        if scope["type"] == "http":
            service: Service = scope["state"]["service"]
            if origins := service.settings.cors_origins:
                app = self._allowing.get(origins) or self._allow(origins)
        await app(scope, receive, send)

    def _allow(self, origins: tuple[str, ...]) -> CORSMiddleware:
        self._allowing[origins] = _JsonCorsMiddleware(
            self.app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Inference-Header-Content-Length",
                "X-API-Key",
                "X-Request-ID",
            ],
            expose_headers=["Inference-Header-Content-Length", "Retry-After", "X-Request-ID"],
        )
        return self._allowing[origins]


class _JsonCorsMiddleware(CORSMiddleware):
    """Refuses preflight requests in JSON, as everything is refused; Starlette would in plain text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        plain = super().preflight_response(request_headers)
        if plain.status_code == 200:
            return plain
        reason = bytes(plain.body).decode()
        text = f"{reason}: this web site's pages may not send this; the operator allows sites by JAXCNN_CORS_ORIGINS."
        headers = {name: value for name, value in plain.headers.items() if not name.startswith("content-")}
        return JSONResponse({"error": text}, plain.status_code, headers)
