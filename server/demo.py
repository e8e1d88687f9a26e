"""The demo page: its files, the model file for the browser, and the runtime that runs it there."""

import re
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from server.model import signature_of
from server.service import Service

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
_TYPES |= {".wasm": "application/wasm"}

# What onnxruntime-web loads for the plain WebAssembly backend.
_RUNTIME = re.compile(r"ort\.wasm\.min\.mjs|ort-wasm-simd-threaded\.(mjs|wasm)")

_ASK = "no-cache"
_KEEP = "private, max-age=31536000, immutable"

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:;"
    " script-src 'self' 'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Accept-Ranges": "none",
}


async def index(request: Request) -> Response:
    """`GET /`."""
    _require_page(request)
    return _file(_FOLDER / "index.html")


async def part(request: Request) -> Response:
    """`GET /page/NAME`: a style sheet or script of the page."""
    _require_page(request)
    path = _FOLDER / request.path_params["name"]
    if path.name not in _names():
        raise HTTPException(404)
    return _file(path)


async def info(request: Request) -> Response:
    """`GET /model.json`: what the page has to know of the model."""
    service = _require_page(request)
    model = service.model
    return JSONResponse(
        {
            "name": model.name,
            "names": model.names,
            "height": model.height,
            "width": model.width,
            "heatmap": model.has_heatmap,
            "in_browser": service.settings.onnxruntime_web is not None,
            "sha256": model.digest,
        }
    )


async def model_file(request: Request) -> Response:
    """`GET /model.onnx`: the file that is served; `?SHA256` is that file or none, and a browser may keep it."""
    service = _require_page(request)
    path, served = service.settings.model, service.model
    digest = request.url.query
    if not digest:
        return _file(path)
    if digest != served.digest or signature_of(path) != served.signature:
        raise HTTPException(404, "The model file has been replaced: reload the page.")
    return _file(path, cache=_KEEP)


async def runtime(request: Request) -> Response:
    """`GET /onnxruntime-web/NAME`."""
    folder = _require_page(request).settings.onnxruntime_web
    name = request.path_params["name"]
    if folder is None or not _RUNTIME.fullmatch(name):
        raise HTTPException(404)
    return _file(folder / name, cache="max-age=86400")


def _require_page(request: Request) -> Service:
    service: Service = request.state.service
    if not service.settings.page:
        raise HTTPException(404)
    return service


def _names() -> set[str]:
    return {each.name for each in _FOLDER.iterdir()}


def _file(path: Path, *, cache: str = _ASK) -> Response:
    if not path.is_file():
        raise HTTPException(404, "This file of the demo page is not there any more.")
    media_type = _TYPES.get(path.suffix, "application/octet-stream")
    return _WholeFile(path, media_type=media_type, headers={**_HEADERS, "Cache-Control": cache})


class _WholeFile(FileResponse):
    """A file that is sent whole, whatever `Range` asks for: Starlette refuses some of those in plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


ROUTES: list[BaseRoute] = [
    Route("/", index),
    Route("/model.json", info),
    Route("/page/{name}", part),
    Route("/model.onnx", model_file),
    Route("/onnxruntime-web/{name}", runtime),
]
